"""The roads from and to mergekit: its YAML becomes a recipe, and a recipe becomes its YAML.

Start with `document.Document` (what a YAML says), `weights` (the coefficients that this means) and
`opening.open_document` (the base and the vectors). mergekit itself is not needed, and never imported.
"""

"""Merged models: loaded, changed in place, exported to a folder, or pushed.

Start with `loading.DEMModel`. A model that is written and not loaded is planned first: `planned.PlannedModel.of`,
then `export.export`, `upload.push_merged`, or an estimate of either.
"""

"""The mixer: a page with a slider for each vector, that shows what a mixture loses and what it says.

The page (`page.py`) is Gradio's; everything else works, and is tested, without it:

* `mixer.py`: the one model, which all visitors share. It merges, measures, answers, takes vectors in, and saves.
* `presets.py`: coefficients with a name, such as those that were found.
* `other_model.py`: a second model to compare with.
* `space.py`: the page on a machine of the Hub.
* `generation.py`: answers of the model, word by word.
* `landscape.py` and `tables.py`: what the page draws, as SVG and as HTML.
* `naming.py`: what a visitor may type, and messages without paths and tokens.

What a search says of coefficients that it did not measure is in `dem_hub/search/prediction.py`.

Gradio (extra `mixer`) is imported when the page is opened.
"""

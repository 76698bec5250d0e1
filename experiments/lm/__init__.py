"""The command of language models: training, and text from what was trained."""

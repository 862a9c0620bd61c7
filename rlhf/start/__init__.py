"""From a chat model and some files to the folder of a run: look at the model, size the settings, write them down."""

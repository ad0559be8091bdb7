"""A model as a repository of scvi-tools' hub: a folder that `scvi.hub.HubModel` opens, sent and received.

    hub_files   names of the files of such a folder, and the checksums by which they are compared
    hub_folder  writes the folder of a model: weights, minified cells, card
    transfer    `push` and `pull`: a folder to or from a place, which is another folder or a repository
    receiving   files from a place into a folder, whole or not at all, continued after an interruption
    repository  a repository of the Hugging Face Hub, through huggingface_hub

It may import `card` and what that may import.
"""

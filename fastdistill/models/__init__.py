"""Models: any Hugging Face encoder run padding-free, with its hidden states, queries, keys and values captured."""

"""A server that speaks as OpenAI's does: chat, completions, embeddings and scores of a model, over HTTP."""

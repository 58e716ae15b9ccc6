"""From images to token states that a language model reads beside its words."""

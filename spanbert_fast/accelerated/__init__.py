"""transformers' encoders on packed tokens: constructors, calls, outputs, names unchanged.

    spanbert_fast.accelerate(model)                           # one that you have, in place
    from spanbert_fast.accelerated.roberta import RobertaModel  # one that you make

`families` has the table of what is covered. The classes here are subclasses of transformers' own.
Of a padded batch only the tokens are computed; what comes out where the mask is 0 is zero. A call
that the packed path does not cover (output_attentions, caches, masks of more than padding, padding
in front) runs transformers' own code and says so once; so does, in silence, any call with
`spanbert_fast=False`.

Between the modules of a model hidden states are (total_tokens, hidden_size), with the keyword
argument `packed` beside them: this is what a hook on one of them sees. Hooks on the embeddings see
padded input.
"""

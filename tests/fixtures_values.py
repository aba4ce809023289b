"""Tiny models with a head for rewards or classes, decoders and encoders, and an encoder's tokenizer."""

from fixtures_models import tiny_config, tiny_tokenizer

ENCODERS = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "roberta": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
}
WORDS = ("hello", "what", "how", "the", "river", "runs", "to", "sea", "moon", "cat")


def encoder_tokenizer():
    """Lower-case words between [CLS] and [SEP], as BERT's tokenizer has them; it has no eos_token."""
    from transformers import BertTokenizerFast

    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(words)})


def tiny_values(arch="llama", labels=3, seed=0, vocab=None, scale=0.2, **changes):
    """A random float32 model with a head of so many values, in evaluation mode; no global RNG is used."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    if arch in ENCODERS:
        sizes = ENCODERS[arch] | {"vocab_size": vocab or len(encoder_tokenizer()), "max_position_embeddings": 64}
        config = AutoConfig.for_model(arch, pad_token_id=0, **(sizes | changes))
    else:
        config = tiny_config(vocab or len(tiny_tokenizer()), arch, **changes)
    config.num_labels = labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in dict.fromkeys(model.parameters()):
                if parameter.dim() > 1:
                    parameter.normal_(0.0, scale)
    return model.eval()


def save_encoder(folder, arch="distilbert"):
    """A folder of an encoder as it was pre-trained: it says words, and has no head for classes."""
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM

    sizes = ENCODERS[arch] | {"vocab_size": len(encoder_tokenizer()), "max_position_embeddings": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(arch, pad_token_id=0, **sizes))
        with torch.no_grad():
            for parameter in dict.fromkeys(model.parameters()):
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.2)
    model.save_pretrained(folder)
    encoder_tokenizer().save_pretrained(folder)
    return folder

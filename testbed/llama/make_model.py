"""Writes a model that llama.cpp loads and that knows nothing: random weights, seeded, the same file at every run.

    make_model.py OUT.gguf

Architecture `llama`: two layers, width 64, four heads, 32,768 tokens of context. The vocabulary is
of bytes (SentencePiece with byte fallback: 256 bytes, three control tokens) and one token for each printable ASCII character. One channel of
every vector is kept constant, and the output layer uses it to make bytes, control tokens and the end of text very unlikely: what it says is
text, one ASCII character a token, and goes on until its limit. Not for any other use: it says nothing that means anything.
"""

import sys

import gguf
import numpy as np

LAYERS, WIDTH, HEADS, FEED, CONTEXT = 2, 64, 4, 128, 32768
# Chat as ChatML has it, without its special tokens: the vocabulary has none.
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"

rng = np.random.default_rng(402)


def vocabulary():
    kind = gguf.TokenType
    control = [("<unk>", kind.UNKNOWN), ("<s>", kind.CONTROL), ("</s>", kind.CONTROL)]
    octets = [(f"<0x{byte:02X}>", kind.BYTE) for byte in range(256)]
    # SentencePiece writes a space as U+2581.
    letters = [("\u2581" if char == " " else char, kind.NORMAL) for char in map(chr, range(0x20, 0x7F))]
    return control + octets + letters, len(control) + len(octets)


def random(*shape):
    return rng.normal(0, 1 / np.sqrt(shape[-1]), shape).astype(np.float32)


def main(path):
    tokens, first_letter = vocabulary()
    out = gguf.GGUFWriter(path, "llama")
    out.add_name("Pontage test model")
    out.add_context_length(CONTEXT)
    out.add_embedding_length(WIDTH)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(FEED)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(WIDTH // HEADS)
    out.add_vocab_size(len(tokens))
    out.add_file_type(gguf.LlamaFileType.ALL_F32)
    out.add_tokenizer_model("llama")
    out.add_token_list([text for text, _ in tokens])
    out.add_token_scores([0.0] * len(tokens))
    out.add_token_types([kind for _, kind in tokens])
    out.add_unk_token_id(0)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_add_bos_token(True)
    out.add_chat_template(TEMPLATE)

    # Channel 0 is 1 in every embedding, and no layer writes to it: it is positive in front of the output layer, whatever was said.
    embeddings = rng.normal(0, 1, (len(tokens), WIDTH)).astype(np.float32)
    embeddings[:, 0] = 1
    out.add_tensor("token_embd.weight", embeddings)
    for layer in range(LAYERS):
        for name, rows, columns in [
            ("attn_q", WIDTH, WIDTH),
            ("attn_k", WIDTH, WIDTH),
            ("attn_v", WIDTH, WIDTH),
            ("attn_output", WIDTH, WIDTH),
            ("ffn_gate", FEED, WIDTH),
            ("ffn_up", FEED, WIDTH),
            ("ffn_down", WIDTH, FEED),
        ]:
            weight = random(rows, columns)
            if name in ("attn_output", "ffn_down"):
                weight[0, :] = 0
            out.add_tensor(f"blk.{layer}.{name}.weight", weight)
        out.add_tensor(f"blk.{layer}.attn_norm.weight", np.ones(WIDTH, np.float32))
        out.add_tensor(f"blk.{layer}.ffn_norm.weight", np.ones(WIDTH, np.float32))
    out.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    logits = random(len(tokens), WIDTH) * 0.4
    logits[:, 0] = 0
    logits[:first_letter, 0] = -100
    out.add_tensor("output.weight", logits)

    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


main(sys.argv[1])

"""Writes the three folders of small networks beside this file, with PyTorch and transformers on a CPU in float32.

    pip install torch transformers && python make.py

Each folder: config.json and model.safetensors as transformers saves them; golden.json with rows of token ids, the mean
loss over all next tokens, the log-probability of each, and the logits after the last input of row 0; grads.safetensors
with the gradient of that mean loss.
"""
import json
import os

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

STRETCHED = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 16}

# name: (seed, class, config, rows, ids in a row)
CASES = {
    "llama-gqa-untied": (1, LlamaForCausalLM, LlamaConfig(
        vocab_size=101, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        rms_norm_eps=1e-5, tie_word_embeddings=False, max_position_embeddings=64, bos_token_id=1, eos_token_id=2), 4, 20),
    "llama-mqa-scaled-tied": (2, LlamaForCausalLM, LlamaConfig(
        vocab_size=131, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=1,
        head_dim=12, rms_norm_eps=1e-5, tie_word_embeddings=True, max_position_embeddings=128, rope_parameters=STRETCHED,
        bos_token_id=1, eos_token_id=2), 2, 52),
    "qwen3-tied": (3, Qwen3ForCausalLM, Qwen3Config(
        vocab_size=89, hidden_size=24, intermediate_size=52, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=10, rms_norm_eps=1e-6, tie_word_embeddings=True, max_position_embeddings=64, use_sliding_window=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, bos_token_id=1, eos_token_id=2), 4, 20),
}

for name, (seed, model_class, config, rows, ids) in CASES.items():
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = model_class(config).float().eval()
    with torch.no_grad():
        # Wider than a fresh network's, so that an error anywhere reaches the outputs.
        for p in model.parameters():
            p.copy_(1 + 0.3 * torch.randn_like(p) if p.ndim == 1 else torch.randn_like(p) * 0.7 / p.shape[1] ** 0.5)
    tokens = torch.randint(0, config.vocab_size, (rows, ids))
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    logprob = torch.log_softmax(logits, -1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    loss = -logprob.mean()
    loss.backward()

    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    model.save_pretrained(folder)
    os.remove(os.path.join(folder, "generation_config.json"))
    save_file({n: p.grad.contiguous() for n, p in model.named_parameters()}, os.path.join(folder, "grads.safetensors"))
    with open(os.path.join(folder, "golden.json"), "w") as f:
        json.dump({"rows": tokens.tolist(), "mean_nll": loss.item(), "logprob": logprob.tolist(),
                   "last_logits_of_row_0": logits[0, -1].tolist()}, f)
    print(name, sum(p.numel() for p in model.parameters()), loss.item())

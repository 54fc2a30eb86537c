#!/usr/bin/env python3
"""Writes a folder that `esker parity` reads, from any transformers model of the Llama or Qwen3 family.

  python tools/make_parity.py OUT --model DIR_OR_NAME        a model with its weights
  python tools/make_parity.py OUT --config config.json       a random one of that shape
  esker parity OUT

The folder holds what torch computes on the CPU in float32: the log-probabilities of a batch of random tokens, the
gradient of their mean loss, and some AdamW steps with decay on matrices only and the norm clipped.
Needs torch, transformers and safetensors; esker needs none of them.
"""
import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=pathlib.Path)
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="a folder, or a name that transformers resolves")
    source.add_argument("--config", help="a config.json: weights are drawn")
    p.add_argument("--rows", type=int, default=2, help="rows of a batch")
    p.add_argument("--seq", type=int, default=48, help="targets of a row")
    p.add_argument("--steps", type=int, default=20, help="AdamW steps")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--spread", type=float, default=0.5, help="size of drawn weights: deviation times the root of the inputs")
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--betas", type=float, nargs=2, default=(0.9, 0.95))
    p.add_argument("--eps", type=float, default=1e-8)
    p.add_argument("--weight-decay", type=float, default=0.1)
    p.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient; 0 = no clip")
    return p.parse_args()


def load(a):
    if a.model:
        return AutoModelForCausalLM.from_pretrained(a.model, torch_dtype=torch.float32, attn_implementation="eager")
    config = AutoConfig.from_pretrained(a.config)
    model = AutoModelForCausalLM.from_config(config, torch_dtype=torch.float32, attn_implementation="eager")
    # Far from the usual start, where norms are 1 and scores near 0 and many mistakes would not show.
    with torch.no_grad():
        for p in model.parameters():
            draw = torch.randn(p.shape)
            p.copy_(1 + 0.2 * draw if p.ndim == 1 else draw * a.spread / p.shape[-1] ** 0.5)
    return model


def evaluate(model, rows):
    """Mean loss and the log-probability of each target of `rows`, whose targets are the ids after the first."""
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits.float()
    logprob = logits.log_softmax(-1).gather(-1, rows[:, 1:].unsqueeze(-1)).squeeze(-1)
    return -logprob.mean(), logprob


def named(model, of):
    return {name: of(p).detach().clone().contiguous() for name, p in model.named_parameters()}


def norm(tensors):
    return sum(t.double().square().sum().item() for t in tensors) ** 0.5


def write_json(path, value):
    path.write_text(json.dumps(value) + "\n")


def train(model, batches, a):
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": a.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=a.lr, betas=tuple(a.betas), eps=a.eps, foreach=False)
    log = []
    for step, rows in enumerate(batches):
        optimiser.zero_grad()
        loss, _ = evaluate(model, rows)
        loss.backward()
        before = norm(p.grad for p in model.parameters())
        if a.clip > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), a.clip)
        optimiser.step()
        log.append({"step": step, "loss": loss.item(), "grad_norm_before_clip": before})
    return log


def main():
    a = arguments()
    torch.manual_seed(a.seed)
    torch.set_num_threads(1)
    model = load(a).eval()
    a.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(a.out, safe_serialization=True)
    batches = torch.randint(0, model.config.vocab_size, (a.steps, a.rows, a.seq + 1))
    write_json(a.out / "tokens.json", {"rows": batches.tolist()})

    loss, logprob = evaluate(model, batches[0])
    loss.backward()
    gradients = named(model, lambda p: p.grad)
    save_file(gradients, a.out / "grads.safetensors")
    write_json(
        a.out / "expected.json",
        {"mean_nll": loss.item(), "logprob": logprob.tolist(), "grad_norm": norm(gradients.values())},
    )

    settings = {
        "kind": "AdamW", "schedule": "constant", "lr": a.lr, "beta1": a.betas[0], "beta2": a.betas[1], "eps": a.eps,
        "weight_decay": a.weight_decay, "decay": "matrices only", "clip_global_norm": a.clip or None, "steps": a.steps,
    }
    log = train(model, batches, a)
    write_json(a.out / "train.json", {"optimizer": settings, "steps": log})
    save_file(named(model, lambda p: p), a.out / "trained.safetensors")
    print(f"{a.out}: {sum(p.numel() for p in model.parameters())} parameters, loss {log[0]['loss']:.4f} -> {log[-1]['loss']:.4f}")


if __name__ == "__main__":
    main()

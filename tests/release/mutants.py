"""Breaks, one at a time, the line that an invariant rests on, and sees that a test fails.

    python tests/release/mutants.py            # all of them; part of make release
    python tests/release/mutants.py 3 faults   # those of invariant 3 of docs/invariants.md, and of the bad days
    python tests/release/mutants.py check      # which lines do not stand exactly once in their file

A mutant that survives is a test that guards nothing: the exit code is then 1.
"""
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DATA, MODEL, SCRIPTS = 'tests/test_data.py', 'tests/test_model.py::', 'tests/test_scripts.py::'
DPO, HYBRIDS, FAULTS, GPU, REAL, RUNS = (
    f'tests/test_{name}.py::' for name in ('dpo', 'hybrids', 'faults', 'gpu_ready', 'real', 'runs'))
ROWS, TOKENS, WILD = (f'tests/test_{name}.py::' for name in ('rows', 'tokenizers', 'models_in_the_wild'))
LATEX = 'tests/test_latex.py'
EMBEDDED, RESULTS = 'tests/test_embedded.py::', 'tests/test_results.py::'
LORA, SHARDED = 'tests/test_lora.py::', 'tests/test_sharded.py::'
DISTILL = 'tests/test_distill.py::'
# invariant, file, the line as it is, the line broken, the tests that must fail
MUTANTS = [
    (1, 'data.py', 'place = found.end()', 'place = found.start()', DATA),
    (1, 'data.py', '            ids, mask = fit(*mask_of(piece_ids, are_trained), max_length, overlong)\n',
     '            ids, mask = fit(*mask_of(piece_ids, are_trained), max_length, overlong)\n            mask &= ids != tokenizer.pad_token_id\n', DATA),
    (1, 'data.py', 'piece_ids = [bos, *piece_ids, eos]', 'piece_ids = [bos, *piece_ids, []]', DATA),
    (2, 'model.py', 'return z.div_(temperature)', 'return z', MODEL + 'test_sampled_logprobs_are_the_trainers'),
    (2, 'rollout.py', 'logits.float() / divisor', 'logits.float()',
     MODEL + 'test_sampled_logprobs_are_the_trainers'),
    (2, 'rollout.py', '    dtype = compute_dtype(model)\n',
     '    dtype = compute_dtype(model)\n    temperature = model.generation_config.temperature or temperature\n',
     MODEL + 'test_generation_config_is_never_applied'),
    (3, 'sft.py', '-logprobs.sum() / supervised_tokens', '-logprobs.mean()', SCRIPTS + 'test_sft_does_not_depend_on_micro_batches'),
    (3, 'sft.py', '(loss * world_size).backward()', 'loss.backward()', SCRIPTS + 'test_sft_on_two_ranks_is_sft_on_one'),
    (3, 'grpo.py', '(loss * world_size).backward()', 'loss.backward()', SCRIPTS + 'test_grpo_on_two_ranks_is_grpo_on_one'),
    (3, 'grpo.py', 'return [collate_completions(part, total_tokens, total_completions) for part in plan]',
     'return [collate_completions(part, sum(len(c.ids) for part in plan for c in part), total_completions) for part in plan]',
     SCRIPTS + 'test_grpo_on_two_ranks_is_grpo_on_one'),
    (3, 'grpo.py', 'plan = plan_micro_batches(completions,', 'total_tokens = sum(len(c.ids) for c in completions)\n    plan = plan_micro_batches(completions,',
     SCRIPTS + 'test_groups_without_spread_cost_no_update_and_keep_the_denominator'),
    (3, 'grpo.py', 'advantages.append(torch.as_tensor(completion.advantage).expand(length))',
     'advantages.append(torch.as_tensor(completion.advantage).float().mean().expand(length))',
     SCRIPTS + 'test_an_advantage_may_be_one_number_or_one_a_token'),
    (4, 'sft.py', 'nullcontext() if is_last or ddp is policy else ', '', SCRIPTS + 'test_sft_on_two_ranks_is_sft_on_one'),
    (4, 'grpo.py', 'nullcontext() if is_last or ddp is policy else', 'nullcontext() if False else', SCRIPTS + 'test_grpo_on_two_ranks_is_grpo_on_one'),
    (5, 'model.py', "device='cpu', dtype=torch.float32, attention", "device='cpu', dtype='auto', attention",
     MODEL + 'test_weights_are_fp32_masters'),
    (6, 'run.py', "    local.load_state_dict({'state': moments, 'param_groups': options})", '    pass', RUNS + 'test_odd_numbers_on_two_ranks[sft.py]'),
    (6, 'run.py', "    local.load_state_dict({'state': moments, 'param_groups': options})", '    pass', RUNS + 'test_odd_numbers_on_two_ranks[grpo.py]'),
    (6, 'run.py', "    order.position = shared['position']", '    pass', RUNS + 'test_odd_numbers_on_two_ranks[grpo.py]'),
    (6, 'run.py', "            os.truncate(self.path, saved['shared']['log_bytes'])", '            pass', RUNS + 'test_odd_numbers_on_two_ranks[sft.py]'),
    (7, 'grpo.py', "Completion(prompt['ids'], sample['ids'], sample['logprobs']",
     "Completion(prompt['ids'], tokenizer(' ' + tokenizer.decode(sample['ids'][:-1]))['input_ids'], sample['logprobs']",
     SCRIPTS + 'test_grpo_loss_is_zero_at_ratio_one_and_its_gradient_is_not'),
    (8, 'model.py', 'documents = Documents(lengths, ids.device, parents)', 'documents = Documents([len(ids)], ids.device)',
     MODEL + 'test_packed_documents_do_not_see_each_other'),
    (8, 'model.py', 'in_segment = places - self.starts.repeat_interleave(self.lengths)', 'in_segment = places',  # RoPE is relative: only a shared prompt can tell
     MODEL + 'test_a_prompt_shared_by_its_group_is_a_prompt_of_each'),
    (8, 'model.py', 'is_seen = torch.arange(keys.shape[1]) <= last_seen', 'is_seen = torch.arange(keys.shape[1]) <= 1 + last_seen',
     MODEL + 'test_a_prompt_shared_by_its_group_is_a_prompt_of_each'),
    (3, 'dpo.py', 'losses.sum() / batch_size', 'losses.mean()', DPO + 'test_packing_and_ranks_do_not_change_it'),
    (4, 'dpo.py', 'nullcontext() if is_last or ddp is policy else', 'nullcontext() if False else', DPO + 'test_packing_and_ranks_do_not_change_it'),
    (9, 'dpo.py', 'log_ratios = logprobs - ref_logprobs', 'log_ratios = logprobs', DPO + 'test_loss_at_step_0_and_its_gradient'),
    (9, 'dpo.py', "return kept['logprobs'] if kept['key'] == key else None", "return kept['logprobs']",
     DPO + 'test_reference_logprobs_and_their_cache'),
    (9, 'grpo.py', "micro.get('old_logprobs', logprobs.detach())", "micro.get('old_logprobs', logprobs)",
     SCRIPTS + 'test_grpo_loss_is_zero_at_ratio_one_and_its_gradient_is_not'),
    (9, 'grpo.py', 'if (rewards == rewards[0]).all():', 'if False:', SCRIPTS + 'test_equal_rewards_have_no_advantage'),
    ('gpu', 'model.py', 'if all(error < 0.02 for error in errors):', 'if max(errors) < 0.02:', GPU + 'test_the_self_test_sees_what_a_wrong_kernel_writes'),
    ('runs', 'run.py', "'shard', 'seed',", "'shard',", RUNS + 'test_settings_that_a_resumed_run_cannot_change'),
    (9, 'grpo.py', 'advantages = rewards - rewards.mean()', 'advantages = rewards.clone()',
     SCRIPTS + 'test_grpo_loss_is_zero_at_ratio_one_and_its_gradient_is_not'),
    (6, 'run.py', 'if expected != checksum(path):', 'if False:', FAULTS + 'test_damaged_state_is_named_and_half_written_state_is_not_used'),
    (6, 'run.py', "        folder += '.old'", '        pass', FAULTS + 'test_damaged_state_is_named_and_half_written_state_is_not_used'),
    (6, 'sft.py', '    if stop_requested:\n        break', '    if False:\n        break', FAULTS + 'test_a_signal_ends_the_step_and_nothing_is_lost'),
    (10, 'hpt.py', 'n_right / group_size <= gamma', 'n_right / group_size < gamma', HYBRIDS + 'test_gate_by_hand'),
    (10, 'hpt.py', '            continue  # its completions', '            pass  # its completions', HYBRIDS + 'test_gate_by_hand'),
    (10, 'hpt.py', 'total_demonstrated = sum(len(demonstration.ids)', 'total_demonstrated = sum(1', HYBRIDS + 'test_hpt_is_sft_grpo_or_their_sum'),
    (10, 'hpt.py', 'if group.has_spread or group.learns_demonstration or is_last', 'if group.has_spread or is_last', HYBRIDS + 'test_resampling_keeps_taught_prompts'),
    (10, 'hpt.py', 'k3 = k3 * ~is_demonstration', 'k3 = k3 * 1', HYBRIDS + 'test_shown_tokens_have_no_kl_and_no_importance_weight'),
    (10, 'hpt.py', 'sampler_logprobs = torch.where(is_demonstration, logprobs.detach(), sampler_logprobs)', 'pass',
     HYBRIDS + 'test_shown_tokens_have_no_kl_and_no_importance_weight'),
    (10, 'prefix_rft.py', 'k3 = k3 * ~is_prefix', 'k3 = k3 * 1', HYBRIDS + 'test_shown_tokens_have_no_kl_and_no_importance_weight'),
    (10, 'prefix_rft.py', 'sampler_logprobs = torch.where(is_prefix, logprobs.detach(), sampler_logprobs)', 'pass',
     HYBRIDS + 'test_shown_tokens_have_no_kl_and_no_importance_weight'),
    (10, 'prefix_rft.py', 'loss = -(weight * mask * ', 'loss = -(weight * ', HYBRIDS + 'test_only_the_filtered_prefix_has_a_gradient'),
    (10, 'prefix_rft.py', 'positions = (is_prefix & (doc == sequence))', 'positions = is_prefix', HYBRIDS + 'test_entropy_filter_by_hand'),
    (10, 'prefix_rft.py', "rewards[:n_free] if prefix_baseline == 'free' else rewards", 'rewards[:n_free]',
     HYBRIDS + 'test_cosine_prefix_and_baseline_by_hand'),
    (10, 'prefix_rft.py', 'len(demonstration) - 1)', 'len(demonstration))', HYBRIDS + 'test_a_prefix_leaves_the_last_token_and_the_end_to_the_model'),
    (10, 'prefix_rft.py', 'return self.prefix_ids + self.sampled_ids',
     "return (tokenizer(' ' + tokenizer.decode(self.prefix_ids))['input_ids'] if self.prefix_ids else []) + self.sampled_ids",
     HYBRIDS + 'test_cosine_prefix_and_baseline_by_hand'),
    (10, 'distill.py', "difference = micro['teacher_logprobs'] - old_logprobs", "difference = old_logprobs - micro['teacher_logprobs']",
     DISTILL + 'test_sampled_reverse_kl_is_a_policy_gradient'),
    (10, 'distill.py', 'advantage = reward_coef * micro', 'advantage = micro', DISTILL + 'test_a_reward_is_added'),
    (10, 'distill.py', "loss = loss + (micro['weight'] * divergences).sum()", 'pass', DISTILL + 'test_whole_distributions_are_trls'),
    (10, 'distill.py', 'torch.where(is_off_policy, 1.0, advantage)', 'advantage', DISTILL + 'test_without_any_of_its_own_samples_it_is_sft'),
    (10, 'distill.py', 'sampler_logprobs = torch.where(is_off_policy, logprobs.detach(), sampler_logprobs)', 'pass',
     DISTILL + 'test_importance_cap_leaves_off_policy_tokens_and_whole_distributions_alone'),
    (10, 'distill.py', 'log_teacher + math.log(jsd_beta), log_student + math.log(1 - jsd_beta)',
     'log_teacher + math.log(1 - jsd_beta), log_student + math.log(jsd_beta)', DISTILL + 'test_divergences_by_hand'),
    (10, 'distill.py', "random_stream(seed, 'on_policy', place)", "random_stream(seed, 'on_policy', rank)", DISTILL + 'test_on_policy_fraction'),
    (10, 'distill.py', 'needs_truth=reward_coef > 0', 'needs_truth=True', DISTILL + 'test_prompts_without_a_truth_are_welcome'),
    (10, 'model.py', 'teacher.resize_token_embeddings(n_ids, mean_resizing=False)', 'pass', DISTILL + 'test_a_teacher_of_another_shape'),
    (10, 'distill.py', "loss = loss + (micro['weight'] *", 'loss = loss + (weight *',
     DISTILL + 'test_importance_cap_leaves_off_policy_tokens_and_whole_distributions_alone'),
    (10, 'model.py', 'hidden.split(chunk), target.hidden.split(chunk)', 'hidden.split(10 ** 6), target.hidden.split(10 ** 6)',
     DISTILL + 'test_logits_are_never_whole'),
    (10, 'chat.py', 'if of_page[0] != of_page[1]:', 'if False:', DISTILL + 'test_another_tokenizer_is_refused'),
    (10, 'tools/distill.py', "2 * sampled + 2 * scored + 6 * trained", "2 * sampled + 6 * trained", DISTILL + 'test_flops_of_a_run_by_hand'),
    (10, 'prefix_rft.py', 'sample_hybrids(my_prompts, [first_place + place for', 'sample_hybrids(my_prompts, [place + rank for', HYBRIDS + 'test_two_ranks_are_one'),
    ('faults', 'sft.py', 'stop_requested = any(gather(stop.requested))', 'stop_requested = stop.requested and rank == 0', FAULTS + 'test_a_signal_ends_the_step_and_nothing_is_lost'),
    ('faults', 'run.py', '            stop.requested = True', '            pass', FAULTS + 'test_a_signal_in_every_phase'),
    ('faults', 'run.py', "        os.makedirs(os.path.dirname(self.path) or '.', exist_ok=True)", '        pass', FAULTS + 'test_out_dir_deleted_under_a_run'),
    ('faults', 'run.py', 'weights_only=True', 'weights_only=False', FAULTS + 'test_a_pickled_program_in_a_checkpoint_is_not_run'),
    ('faults', 'run.py', "if size < shared['log_bytes']:", 'if False:', FAULTS + 'test_out_dir_deleted_under_a_run'),
    ('rows', 'rows.py', '            file.places.append(place)', '            file.places.append(place)\n            file.held.append(_)',
     DATA + '::test_files_of_lines_are_not_held_in_memory'),
    ('rows', 'chat.py', '        if not pattern.search(text):\n            return text', '        return text', DATA + '::test_a_thousand_malformed_and_hostile_rows'),
    ('rows', 'rows.py', '    if isinstance(value, float) and value != value:\n        return None', '    if False:\n        return None', ROWS + 'test_null_columns_of_joined_files'),
    ('rows', 'rows.py', "    if 'system' not in [message['role'] for message in messages]:", '    if False:', ROWS + 'test_a_column_is_used_alike_by_all_scripts'),
    ('rows', 'rows.py', '    if beside and not is_text:', '    if False:', ROWS + 'test_what_cannot_be_used_is_refused_by_its_name'),
    ('rows', 'rows.py', '        if weight == 0:\n            return False', '        if weight == 0:\n            return True', ROWS + 'test_turns_that_a_row_does_not_want_trained'),
    ('rows', 'rows.py', '        stored = stored_messages(value)\n', '        stored = None\n', ROWS + 'test_other_columns_stored_as_a_text'),
    ('rows', 'data.py', '        count_notes(report, where, notes)\n        examples', '        examples', ROWS + 'test_columns_that_are_not_used_are_counted'),
    ('rows', 'data.py', '            n_missing += 1\n            continue', '            continue', HYBRIDS + 'test_demonstrations_that_the_template_does_not_take'),
    ('tokens', 'data.py', '        earlier = earlier_spans(chat, protected, replies, places, text)', '        earlier = {}', DATA + '::test_end_of_turn_is_trained_although_pad_is_eos'),
    ('tokens', 'data.py', '            spans = earlier_spans(chat, protected, replies, places, text)\n', '            spans = {}\n', TOKENS + 'test_white_space_at_the_border_in_every_turn'),
    ('tokens', 'chat.py', '            if token.special or is_written:', '            if token.special:', TOKENS + 'test_marks_of_turns_that_are_not_special_are_text_where_somebody_types_them'),
    ('tokens', 'chat.py', 'is_written = looks_like_a_mark and token.content', 'is_written = token.content', TOKENS + 'test_added_tokens_that_are_only_words_stay_tokens'),
    ('tokens', 'chat.py', 'piece.lstrip() if self.takes_space(before) else piece', 'piece', TOKENS + 'test_turn_tokens_with_rstrip'),
    ('tokens', 'chat.py', '        if A_THOUGHT not in with_apart:', '        if True:', TOKENS + 'test_one_block_of_thoughts'),
    ('tokens', 'chat.py', '        ids.update(named or [])', '        pass', TOKENS + 'test_stop_ids_hold_those_of_the_models_generation_config'),
    ('tokens', 'chat.py', "            self.template.globals['strftime_now'] = self.day.strftime\n", '', WILD + 'test_ids_do_not_depend_on_the_day'),
    ('tokens', 'chat.py', "        tokenizer.init_kwargs['template_date'] = template_date", '        pass', WILD + 'test_the_day_is_a_knob_and_is_saved_with_the_model'),
    ('tokens', 'data.py', '    if opens_thoughts and not has_thoughts(want):', '    if False:', TOKENS + 'test_a_thinking_model_needs_thoughts'),
    ('tokens', 'data.py', '    if begin is None:', '    if True:', TOKENS + 'test_a_system_message_that_the_template_puts_last'),
    ('tokens', 'data.py', '    if n_untrained:', '    if False:', TOKENS + 'test_turns_that_stay_untrained_are_counted'),
    ('verdicts', 'rewards/latex.py', 'return False if same_domain else None', 'return None', LATEX),
    ('verdicts', 'rewards/latex.py', 'if agreed and not point.hides:', 'if agreed:', LATEX),
    ('verdicts', 'rewards/latex.py', 'if self.is_real and isinstance(y, self.mp.mpc):', 'if False:', LATEX),
    ('verdicts', 'rewards/latex.py', 'if not READABLE.issuperset(MACRO.findall(amount)):', 'if False:', LATEX),
    ('verdicts', 'rewards/latex.py', "if ('%' in p.mark) != ('%' in t.mark):", 'if False:', LATEX),
    ('verdicts', 'verify.py', '    check_truth(kind, text)\n    return text', '    return text', 'tests/test_truths.py'),
    ('verdicts', 'rewards/truths.py', '    if number == number.to_integral_value():', '    if False:', 'tests/test_truths.py'),
    ('verdicts', 'rewards/truths.py', "        if math.isnan(value):\n            return None", '        if False:\n            return None', 'tests/test_truths.py'),
    ('gpu', 'model.py', 'no_autocast, separate_hooks:', 'no_autocast:', GPU + 'test_the_self_test_may_run_inside_a_checkpointed_layer'),
    ('gpu', 'model.py', "scale=scaling, seqused_k=used,", "scale=scaling, seqused_keys=used,", GPU + 'test_cached_attention_as_this_torch_spells_it'),
    ('gpu', 'model.py', 'return torch.cat(outputs).index_select(0, places)', 'return torch.cat(outputs)[places >= 0]', GPU + 'test_packed_attention_as_this_torch_spells_it'),
    ('gpu', 'model.py', 'torch.backends.cuda.enable_cudnn_sdp(False)', 'pass', GPU + 'test_cudnn_attention_is_off'),
    ('gpu', 'model.py', 'always if keeps_gradients else update', 'always', GPU + 'test_memory_plan_by_hand'),
    ('gpu', 'run.py', ', cache_enabled=False)', ')', GPU + 'test_precision_of_a_script'),
    ('gpu', 'run.py', '    torch.manual_seed(random_stream', "    torch.set_float32_matmul_precision('high')\n    torch.manual_seed(random_stream", GPU + 'test_precision_of_a_script'),
    ('gpu', 'sft.py', 'set_to_none=ddp is policy', 'set_to_none=True', GPU + 'test_gradients_stay_in_ddps_buckets_and_ranks_wait_an_hour'),
    ('gpu', 'run.py', 'timeout=timedelta(hours=1)', 'timeout=timedelta(minutes=30)', GPU + 'test_gradients_stay_in_ddps_buckets_and_ranks_wait_an_hour'),
    ('gpu', 'decoder.py', 'pool=self.pool, ', 'pool=None, ', GPU + 'test_graphs_share_one_pool_and_one_stream'),
    ('gpu', 'decoder.py', 'self.stream = cuda.Stream()', 'self.stream = cuda.current_stream()', GPU + 'test_graphs_share_one_pool_and_one_stream'),
    ('gpu', 'rollout.py', 'with callers_autocast(device, keep_casts=False):\n            output', 'with callers_autocast(device, keep_casts=True):\n            output',
     GPU + 'test_a_rollout_keeps_no_bf16_copy_of_the_weights_beside_the_decode_copy'),
    ('real', 'rollout.py', 'elif msg is None:', 'else:', REAL + 'test_progress_in_a_file_is_a_line_now_and_then'),
    ('real', 'sample.py', 'kv_cache_gb, progress)', 'kv_cache_gb)', REAL + 'test_sample_tells_how_far_it_is'),
    ('real', 'tools/smollm2.py', 'if not torch.equal(found, expected):', 'if False:', REAL + 'test_a_folder_that_computes_something_else_is_not_kept'),
    ('real', 'tools/smollm2.py', '        del model.config.quantization_config', '        pass', REAL + 'test_a_gguf_file_becomes_a_plain_folder'),
    ('real', 'examples/svamp/make.py', 'equation[:operation.start()] + result', 'result', REAL + 'test_the_rows_are_what_the_script_makes'),
    ('runs', 'data.py', "key=int.from_bytes(digest[:16], 'little')", "key=int.from_bytes(digest[:2], 'little')", RUNS + 'test_every_key_has_a_stream_of_its_own'),
    ('runs', 'data.py', 'repr(key).encode()', 'repr(key[1:]).encode()', RUNS + 'test_two_seeds_are_two_models_from_scratch'),
    ('runs', 'rollout.py', 'random_stream(seed, member)', 'random_stream(seed)', RUNS + 'test_the_streams_of_a_run_do_not_collide'),
    ('runs', 'grpo.py', "(seed, 'rollout', first_place + place)", "('rollout', first_place + place)", RUNS + 'test_two_seeds_are_two_runs'),
    ('runs', 'prefix_rft.py', "(seed, 'hybrid', place, member)", "(seed, 'rollout', place)", RUNS + 'test_the_streams_of_a_run_do_not_collide'),
    ('runs', 'sample.py', "complete(weaker, part, first, 'rejected')", "complete(weaker, part, first, 'sample')", RUNS + 'test_the_second_model_has_streams_of_its_own'),
    ('runs', 'grpo.py', 'n_updates = min(updates_per_rollout, max_steps - step)', 'n_updates = updates_per_rollout', RUNS + 'test_any_schedule'),
    ('runs', 'grpo.py', 'max(1, max_steps - 1 - first)', 'max(1, max_steps - first)', RUNS + 'test_any_schedule'),
    ('runs', 'grpo.py', 'step % every < updates_per_rollout', 'step % every == 0', RUNS + 'test_any_schedule'),
    ('runs', 'grpo.py', 'or stop_requested or evaluation_due() or', 'or stop_requested or', RUNS + 'test_any_schedule'),
    ('runs', 'sft.py', 'or stop_requested or evaluation_due() or', 'or stop_requested or', RUNS + 'test_an_evaluation_that_fails_costs_no_step'),
    ('runs', 'grpo.py', 'reference = start_model(policy, compute_dtype)', 'reference = Policy(load_model(model, device))', RUNS + 'test_the_kl_of_a_policy_to_itself_is_0'),
    ('runs', 'model.py', 'isinstance(layer, nn.Linear) and', 'True and', RUNS + 'test_the_kl_of_a_policy_to_itself_is_0'),
    ('runs', 'run.py', "'param_groups': options}", "'param_groups': saved['own']['optimizer']['param_groups']}", RUNS + 'test_options_of_the_optimizer_take_effect_on_resume'),
    ('runs', 'run.py', 'if was != value:', 'if False:', RUNS + 'test_settings_that_a_resumed_run_cannot_change'),
    ('runs', 'run.py', '            self.wandb = None\n            tqdm', '            raise\n            tqdm', RUNS + 'test_wandb_that_fails_is_turned_off'),
    ('runs', 'grpo.py', "'mismatch': (old_logprobs - ", "'mismatch': (logprobs - ", RUNS + 'test_mismatch_is_that_of_the_policy_that_sampled'),
    ('runs', 'grpo.py', 'in_rollout = trained_completions(rollout_groups or groups)', 'in_rollout = trained_completions(groups)', RUNS + 'test_a_completion_weighs_the_same_in_every_share'),
    ('runs', 'hpt.py', 'for demonstration in demonstrations_of(rollout_groups)', 'for demonstration in demonstrations_of(groups)', RUNS + 'test_a_completion_weighs_the_same_in_every_share'),
    ('runs', 'grpo.py', 'samples += group_size * len(share)', 'samples += group_size * prompts_per_step // n_updates', RUNS + 'test_samples_count_completions'),
    ('runs', 'hpt.py', '        tokens += len(demonstration.prompt_ids)', '        tokens += 0 * len(demonstration.prompt_ids)', RUNS + 'test_hpts_tokens_hold_demonstrations'),
    ('runs', 'sample.py', "if prompt['kind'] in ANSWERS:", 'if True:', RUNS + 'test_maj_is_left_out_where_nothing_can_be_voted_on'),
    ('runs', 'hpt.py', 'n_right = sum(reward == 1 for reward in rewards.tolist())', 'n_right = sum(rewards.tolist())', HYBRIDS + 'test_the_gate_counts_what_is_solved'),
    ('runs', 'prefix_rft.py', "    demonstration = without_end(prompt['demonstration'])", "    demonstration = prompt['demonstration'] or []", HYBRIDS + 'test_cosine_prefix_and_baseline_by_hand'),
    ('runs', 'model.py', 'scale = -grad_entropy[part, None] / ctx.temperature', 'scale = 0 * grad_entropy[part, None]', MODEL + 'test_logprobs_and_entropy_have_their_gradients'),
    # LoRA
    (11, 'model.py', 'torch.zeros(n_out, rank, device=W.device)', 'torch.full((n_out, rank), 1e-3, device=W.device)', LORA + 'test_at_start_it_is_the_base_to_the_bit'),
    (11, 'model.py', "with torch.autocast(W.device.type, enabled=False):\n            return torch.addmm", "if True:\n            return torch.addmm",
     LORA + 'test_weights_keep_their_dtypes_and_only_linear_layers_are_cast'),
    (11, 'model.py', 'alpha=self.scale)', 'alpha=1.0)', LORA + 'test_gradients_are_the_chain_rule_of_the_weights_gradient'),
    (11, 'model.py', '    model.requires_grad_(False)\n    classes', '    classes', LORA + 'test_a_run_changes_linear_layers_alone'),
    (11, 'model.py', '        if not self.enabled:\n', '        if False:\n', LORA + 'test_the_kl_reference_is_the_policy_with_its_adapter_off'),
    (11, 'model.py', 'weight = getattr(model.get_submodule(path), attribute)', 'weight = parameter', LORA + 'test_what_it_samples_is_what_it_scores'),
    (11, 'model.py', "'lora_alpha': low_rank.scale * rank", "'lora_alpha': low_rank.scale", LORA + 'test_peft_loads_the_adapter'),
    (11, 'model.py', "os.path.join(folder, 'adapter'))", "folder)", LORA + 'test_peft_loads_the_adapter'),
    (11, 'model.py', 'if parameter.dim() > 1 and id(parameter) not in in_linears:', 'if False:', LORA + 'test_a_model_of_experts_is_refused'),
    (11, 'model.py', '        if ctx.needs_input_grad[1]:', '        if True:', LORA + 'test_a_frozen_head_has_no_gradient_tensor'),
    (11, 'run.py', "if shared['base_hash'] != base_hash(policy):", 'if False:', LORA + 'test_a_checkpoint_holds_adapters_alone_and_resumes_exactly'),
    (11, 'run.py', 'for name, p in policy.named_parameters() if p.requires_grad]', 'for name, p in policy.named_parameters()]',
     LORA + 'test_a_checkpoint_holds_adapters_alone_and_resumes_exactly'),
    (11, 'run.py', "'lora_rank', 'lora_alpha', ", '', LORA + 'test_a_resumed_run_keeps_its_lora'),
    (11, 'model.py', 'linear.__class__ = classes.setdefault(linear.__class__.__bases__, linear.__class__)', 'pass', LORA + 'test_compile_compiles_a_layer_once'),
    (11, 'run.py', "for folder in ('state', 'adapter'):", "for folder in ('state',):", LORA + 'test_an_old_adapter_does_not_stay_beside_another_model'),
    # sharded weights
    (4, 'run.py', "most = max(1, *gather(len(plan)))", "most = max(gather(len(plan)))", SHARDED + 'test_a_step_without_any_advantage_is_a_step'),
    (4, 'run.py', "most = max(1, *gather(len(plan))) if shard == 'all' else 1", 'most = 1', SHARDED + 'test_sft_on_two_ranks_is_sft_on_one'),
    (4, 'model.py', 'mesh=mesh, reshard_after_forward=True)', 'mesh=mesh)', SHARDED + 'test_weights_are_whole_only_while_they_are_used'),
    (6, 'run.py', '        local_part(parameter.detach()).copy_(weights[name])', '        pass', SHARDED + 'test_resume_is_exact[sft.py]'),
    (6, 'run.py', "sharded_like(parameters[number], value)", "value", SHARDED + 'test_resume_is_exact[sft.py]'),
    (2, 'rollout.py', 'logits = decode(ids, documents.position_ids, state.cache, documents, last)',
     'logits = decode(ids, documents.position_ids - documents.position_ids % 2, state.cache, documents, last)', SHARDED + 'test_rewards_on_two_ranks_are_those_of_one'),
    (4, 'decoder.py', '    if is_sharded(model):\n        reason', '    if False:\n        reason', SHARDED + 'test_weights_are_whole_only_while_they_are_used'),
    ('gpu', 'model.py', "layer_bytes = (2 + 1 + 1) * 4 * sizes.layer", "layer_bytes = 0", SHARDED + 'test_memory_plan_by_hand'),
    # the embedded task, evaluation and statistics
    ('results', 'embedded.py', "key = f'{sorted(digits)}>{target}'", "key = f'{digits}>{target}'", EMBEDDED + 'test_no_problem_is_in_two_splits'),
    ('results', 'embedded.py', 'if rng.random() < STOP_CHANCE:', "if rng.random() < (0.5 if lines[-1][-1] == 'y' else STOP_CHANCE):",
     EMBEDDED + 'test_base_rows_of_search_stop_at_random'),
    ('results', 'embedded.py', 'target = rng.choice(results)', 'target = make_attempt(digits, rng).result',
     EMBEDDED + 'test_no_habit_pays'),
    ('results', 'embedded.py', 'if len(results) > 1 and search', 'if search', EMBEDDED + 'test_no_habit_pays'),
    ('results', 'tools/results.py', "shutil.rmtree(f'{folder}/state', ignore_errors=True)", 'pass', RESULTS + 'test_a_finished_run_keeps_its_model_and_no_checkpoint'),
    ('results', 'embedded.py', 'if line not in lines:', 'if True:', EMBEDDED + 'test_demonstrations_of_search_are_right'),
    ('results', 'rewards/search.py', 'sorted(used) == sorted(numbers.elements())', 'True', EMBEDDED + 'test_verdicts_of_search'),
    ('results', 'rewards/search.py', 'if result != int(written):', 'if False:', EMBEDDED + 'test_verdicts_of_search'),
    ('results', 'rewards/search.py', 'ATTEMPT.fullmatch(last_line)', 'ATTEMPT.match(last_line)', EMBEDDED + 'test_verdicts_of_search'),
    ('results', 'sft.py', 'eval_temperature, stops, seeds,', '0.0, stops, seeds,', RUNS + 'test_an_evaluation_is_the_mean_over_its_samples[sft.py]'),
    ('results', 'grpo.py', "seeds = [(seed, 'evaluate', place) for place in places]", 'seeds = None',
     RUNS + 'test_an_evaluation_is_the_mean_over_its_samples[grpo.py]'),
    ('results', 'hpt.py', 'my_rows], eval_samples, max_new_tokens,', 'my_rows], 1, max_new_tokens,',
     RUNS + 'test_an_evaluation_is_the_mean_over_its_samples[hpt.py]'),
    ('results', 'tools/report.py', 'p_values[i] * (len(p_values) - place)', 'p_values[i] * len(p_values)', RESULTS + 'test_holm_by_hand'),
    ('results', 'tools/report.py', 'largest = max(largest, min(', 'largest = max(0.0, min(', RESULTS + 'test_holm_by_hand'),
    ('results', 'tools/report.py', 'statistics.stdev(differences) / math.sqrt(len(differences))', 'statistics.stdev(differences)',
     RESULTS + 'test_paired_difference_by_hand'),
    ('results', 'tools/report.py', 'math.cos(i * width) ** (df - 1)', 'math.cos(i * width) ** df', RESULTS + 'test_p_values_are_those_of_the_tables'),
    ('results', 'tools/results.py', "2 * record.get('tokens/sampled', 0) + 6 *", "2 * record.get('tokens/sampled', 0) + 2 *", RESULTS + 'test_flops_by_hand'),
    ('results', 'tools/results.py', 'tried.append((score, -step, -run.learning_rate))', 'tried.append((score, step, -run.learning_rate))',
     RESULTS + 'test_choices_are_the_best_rate_and_step'),
    ('results', 'tools/results.py', 'while attempt.result == target:', 'while False:', RESULTS + 'test_regimes'),
]


def misplaced():
    """What to say of each mutant whose line does not stand exactly once in its file, or whose test does not exist."""
    complaints = []
    for _, name, line, _, tests in MUTANTS:
        with open(os.path.join(ROOT, name)) as f:
            times = f.read().count(line)
        if times != 1:
            complaints.append(f'{name}: {times} times {line!r}')
        for test in tests.split():
            path, _, function = test.partition('::')
            with open(os.path.join(ROOT, path)) as f:
                if f'def {function.partition("[")[0]}' not in f.read():
                    complaints.append(f'{name}: no test {test}')
    return complaints


def caught(mutant):
    """Whether the tests fail on a copy of the repository with this line broken."""
    invariant, name, line, broken, tests = mutant
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, 'nanopost')
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns('.git', '.venv', 'out', 'wandb', '__pycache__', '.*cache'))
        with open(os.path.join(copy, name)) as f:
            source = f.read()
        with open(os.path.join(copy, name), 'w') as f:
            f.write(source.replace(line, broken))
        done = subprocess.run([sys.executable, '-m', 'pytest', '-xq', '-p', 'no:cacheprovider', *tests.split()],
                              cwd=copy, capture_output=True, text=True,
                              env={**os.environ, 'OMP_NUM_THREADS': '1', 'NANOPOST_START_MODEL': start_model})
    last = done.stdout.strip().splitlines()[-1]
    found = done.returncode == 1 and 'failed' in last
    print(f'{"caught" if found else "SURVIVED":8} invariant {invariant} {name}: {line.strip()[:60]!r} ({last})', flush=True)
    return found


complaints = misplaced()
print('\n'.join(complaints) or f'each line of {len(MUTANTS)} mutants stands once in its file')
if complaints or sys.argv[1:] == ['check']:
    sys.exit(bool(complaints))
begun = time.time()
chosen = [m for m in MUTANTS if not sys.argv[1:] or str(m[0]) in sys.argv[1:]]
with tempfile.TemporaryDirectory() as folder:
    # conftest.py's, made once, by the code that is whole
    start_model = os.path.join(folder, 'start_model')
    subprocess.run([sys.executable, 'sft.py', '--data=sums:base', f'--out_dir={start_model}', '--max_steps=250', '--eval_data=', '--eval_prompts='],
                   cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(caught, chosen))
print(f'{sum(results)} caught, {len(results) - sum(results)} survived, {(time.time() - begun) / 60:.0f} minutes')
sys.exit(not all(results))

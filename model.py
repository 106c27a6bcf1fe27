"""All that touches weights: load and save, attention over packed rows, token log-probs.

From top to bottom:

    load and save      load_model, save_model
    LoRA               add_lora: low-rank updates of frozen weights
    reference          start_model: what the KL is taken to; load_teacher: what distill.py learns from
    ranks              shard_weights: the weights divided among GPUs
    checks             models and token ids that are refused, each with its reason
    memory             memory_plan: which GPU memory a run needs, and what for
    packed rows        Documents: which keys each query of a packed row sees
    attention          one function for training, prefill and decoding
    token log-probs    TokenLogprobs: log-probs and entropies with their gradients
    divergences        token_divergences: two models' whole distributions, compared
    Policy             the module that the scripts wrap in DDP, or whose weights they shard

Trainer and sampler (rollout.py) compute the same function. Both use the attention of this file.
For both, a log-prob is the fp32 log-softmax of the logits divided by the temperature. So a
completion is scored under the distribution that it was drawn from.
"""
import copy
import functools
import hashlib
import inspect
import json
import math
import os
import re
import shutil
import warnings
from contextlib import contextmanager
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint
from safetensors.torch import save_file
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

import data
from configurator import RANK, UserError

try:
    from torch.nn.attention.varlen import varlen_attn  # CUDA only, but it imports everywhere
except ImportError:
    # torch before 2.10. varlen_is_right then finds that the kernel does not work, and SDPA is used.
    varlen_attn = None

# The kernel's arguments differ between torch 2.11 and 2.13. In 2.13 varlen_attn must be told that
# several query heads share a key head. In 2.11 it finds out by itself and has no such argument.
VARLEN_TAKES_GQA = (
    varlen_attn is not None and 'enable_gqa' in inspect.signature(varlen_attn).parameters)
# Decoding calls the operator under varlen_attn. It takes a number of splits only in 2.13.
FLASH_FORWARD = torch.ops.aten._flash_attention_forward
FLASH_TAKES_SPLITS = 'num_splits' in str(FLASH_FORWARD.default._schema)

# cuDNN's attention needs about half a second for every new shape, and the shapes of decode steps
# change all the time. torch prefers it on Hopper GPUs, so it is switched off.
torch.backends.cuda.enable_cudnn_sdp(False)

# The scripts draw progress bars of their own.
transformers_logging.disable_progress_bar()

# How many logits TokenLogprobs computes at once: 192 MiB of fp32, 331 tokens of Qwen3's vocabulary.
LOGITS_PER_CHUNK = 3 * 2 ** 24


# --- load and save ------------------------------------------------------------
class Shape(NamedTuple):
    """Sizes of a Qwen3 model that is made from scratch."""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool  # the output head is the embedding
    positions: int


# 'tiny' learns the embedded task. The others have the sizes of public models and random weights,
# for benchmarks: --model=random:qwen3-4b.
SHAPES = {
    'tiny': Shape(4, 128, 4, 2, 32, 384, 262, True, 4096),
    'qwen3-0.6b': Shape(28, 1024, 16, 8, 128, 3072, 151936, True, 40960),
    'qwen3-1.7b': Shape(28, 2048, 16, 8, 128, 6144, 151936, True, 40960),
    'qwen3-4b': Shape(36, 2560, 32, 8, 128, 9728, 151936, True, 40960),
    'qwen3-8b': Shape(36, 4096, 32, 8, 128, 12288, 151936, False, 40960),
}


def load_model(name, device='cpu', dtype=torch.float32, attention='nanopost', rope_theta=0.0,
               max_position_embeddings=0):
    """The causal language model `name` on `device`, in training mode; see load_config.

    The weights are fp32 by default, because the optimizer updates them: bf16 would round away 98 %
    of the updates at learning rate 1e-6. 'tiny' and 'random:<shape>' take their weights from
    torch's random generator. attention='sdpa' gives a plain transformers model, which takes no
    packed rows. Raises UserError.
    """
    config = load_config(name, rope_theta, max_position_embeddings)
    if is_from_scratch(name):
        with torch.device(device):
            model = Qwen3ForCausalLM._from_config(
                config, dtype=dtype, attn_implementation=attention)
        return model.train()

    model = read_checkpoint(name, config, dtype, attention)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            # torch gives the row padding_idx no gradient, but the pad token may be trained:
            # SmolLM2's is its end of turn. Packed rows have no padding to protect.
            module.padding_idx = None
    model.to(device)
    if attention == 'nanopost':
        check_logits(name, model)
    return model.train()


def is_from_scratch(name):
    """Whether a model name stands for random weights: 'tiny' or 'random:<shape>'."""
    return name == 'tiny' or name.startswith('random:')


def load_config(name, rope_theta=0.0, max_position_embeddings=0):
    """Configuration of `name`: 'tiny', 'random:<shape>', a local folder or a hub id.

    rope_theta and max_position_embeddings replace the model's own where they are not 0. Raises
    UserError if there is no such model, or if check_settings refuses it.
    """
    if is_from_scratch(name):
        config = shape_config(name.removeprefix('random:'))
    else:
        config = read_config(name)
    override_positions(name, config, rope_theta, max_position_embeddings)
    return config


def override_positions(name, config, rope_theta, max_position_embeddings):
    """Set the two in a configuration where they are not 0; UserError if it has no one rope_theta."""
    if max_position_embeddings:
        config.max_position_embeddings = max_position_embeddings
    if rope_theta:
        if 'rope_theta' not in (config.rope_parameters or {}):
            raise UserError(f'model {name}: rope_theta cannot be set, because the model has none, or '
                            'one for each type of layer')
        config.rope_parameters['rope_theta'] = rope_theta


def read_config(name):
    """Configuration of a local folder or a hub id, see load_config."""
    is_folder = os.path.isdir(name)
    # A hub id such as Qwen/Qwen3-4B has one slash. With more or fewer, the name can only be a path.
    must_be_path = os.path.sep in name and name.count('/') != 1
    if must_be_path and not is_folder:
        raise UserError(f'model {name}: no such folder')
    if is_folder and not os.path.exists(os.path.join(name, 'config.json')):
        raise UserError(f'model {name}: the folder has no config.json, so it is not a Hugging Face '
                        'model')

    try:
        # Without trust_remote_code=False, transformers asks on the terminal whether to run code
        # that comes with the checkpoint.
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # hub, file and validation errors have no common class
        hint = '' if is_folder else ' (no such local folder, and the hub did not serve it)'
        raise UserError(f'model {name}: cannot be loaded{hint}: {first_line(error)}') from None
    check_settings(name, config)

    # No dropout and no router noise: with them training would score another distribution than the
    # one that sampling draws from.
    for key, value in vars(config).items():
        if re.search('drop|jitter', key) and isinstance(value, float):
            setattr(config, key, 0.0)
    return config


def shape_config(name):
    """Qwen3Config of a name in SHAPES. Raises UserError, which lists the names, for any other."""
    if name not in SHAPES:
        raise UserError(f'no model shape {name!r}; known: {", ".join(SHAPES)}')
    shape = SHAPES[name]
    # With the usual 0.02 the tiny model learns the embedded task more slowly.
    initializer_range = 0.06 if name == 'tiny' else 0.02
    return Qwen3Config(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.ffn,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=shape.positions,
        rope_parameters={'rope_type': 'default', 'rope_theta': 1e6},
        initializer_range=initializer_range)


def read_checkpoint(name, config, dtype, attention):
    """The model of checkpoint `name` on the CPU. UserError if a weight is missing or misfits."""
    # transformers prints a table of the weights that it misses. check_loading says it in one line.
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=dtype, attn_implementation=attention,
            output_loading_info=True, ignore_mismatched_sizes=True)
    except Exception as error:  # hub, file, safetensors and format errors have no common class
        if out_of_memory(error):
            raise
        reason = why_not_read(error)
        raise UserError(f'model {name}: its weights cannot be loaded: {reason}') from error
    finally:
        transformers_logging.set_verbosity(verbosity)

    check_loading(name, model, report)
    if getattr(model.get_output_embeddings(), 'bias', None) is not None:
        raise UserError(f'model {name}: an output head with a bias is not supported')
    return model


def why_not_read(error):
    """One line for an exception of from_pretrained, in plainer words where there are any."""
    line = first_line(error)
    if 'above report' in line:
        # The report, which was not printed, is about parts of weights that transformers joins.
        return 'experts are missing, or have other shapes than config.json says'
    if 'with Meta tensors' in line:
        # transformers compares two tied weights, and only one of them could be read.
        return 'lm_head.weight or the embedding has another shape than config.json says'
    return line


def save_model(model, tokenizer, folder, stop_ids, dtype=torch.float32):
    """Write model, tokenizer and chat template to `folder` in Hugging Face format.

    All ranks must call it, because each may hold a part of the weights; rank 0 writes. Each file is
    replaced atomically. The weights are saved in `dtype`. The saved generation_config stops at
    every id of `stop_ids` and holds no sampling default. Of a model with LoRA the saved weights are
    the merged ones; the adapter alone is in the subfolder adapter/ (see save_adapter).
    """
    state = weights_to_save(model, dtype)
    if RANK > 0:
        return
    temporary = os.path.join(folder, 'model.tmp')
    shutil.rmtree(temporary, ignore_errors=True)

    model.config.eos_token_id = list(stop_ids)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config = GenerationConfig(
        eos_token_id=list(stop_ids),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id)
    model.save_pretrained(temporary, state_dict=state)

    # save_pretrained writes the model's dtype to config.json. Replace it by the dtype in the file.
    model.config.dtype = dtype
    model.config.save_pretrained(temporary)
    model.config.dtype = model.dtype
    tokenizer.save_pretrained(temporary)
    move_files(temporary, folder)

    # In a folder of its own: beside model.safetensors, transformers would load the base model and
    # the adapter instead, wherever the library peft is installed.
    if lora_layers(model):
        save_adapter(model, temporary)
        move_files(temporary, os.path.join(folder, 'adapter'))


def weights_to_save(model, dtype):
    """{name: tensor in `dtype`} of all weights, whole and merged, on the CPU. {} on ranks above 0."""
    # Tied weights are two names of one parameter. Casting each parameter once keeps them tied.
    cast = {}
    state = {}
    for name, parameter in model.state_dict(keep_vars=True).items():
        if is_adapter(name):
            continue
        plain_name = name_without_lora(name)
        if id(parameter) not in cast:
            # Read the weight from its layer: with LoRA, reading merges it.
            path, _, attribute = plain_name.rpartition('.')
            weight = getattr(model.get_submodule(path), attribute)
            # Every rank takes part in gathering a weight, and only rank 0 keeps it.
            weight = whole(weight.detach())
            cast[id(parameter)] = weight.to(dtype).cpu() if RANK == 0 else None
        state[plain_name] = cast[id(parameter)]
    return state if RANK == 0 else {}


def move_files(temporary, folder):
    """Move all files of `temporary` to `folder`, each when it is safe on disk."""
    os.makedirs(folder, exist_ok=True)
    for name in sorted(os.listdir(temporary)):
        path = os.path.join(temporary, name)
        with open(path, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(path, os.path.join(folder, name))
    os.rmdir(temporary)


# --- LoRA ---------------------------------------------------------------------
class LowRank(nn.Module):
    """The weight of a linear layer as W + (alpha / rank) B A (Hu et al. 2021, arXiv 2106.09685).

    W (out, in) is frozen; A (rank, in) and B (out, rank) are trained. torch's parametrize calls
    forward whenever the layer's weight is read. So training, prefill, the decode copy and the saved
    model all see one weight, rounded once, and what is sampled is what is scored. An adapter beside
    the layer, W x + B (A x), would round differently in each of them.
    """

    def __init__(self, W, rank, alpha):
        super().__init__()
        n_out, n_in = W.shape
        self.scale = alpha / rank
        self.enabled = True
        # B starts at 0, so that the sum starts at W. A must not start at 0 too: each has the other as
        # a factor of its gradient, and both would stay 0.
        bound = n_in ** -0.5
        A = torch.empty(rank, n_in).uniform_(-bound, bound)
        self.A = nn.Parameter(A.to(W.device))
        self.B = nn.Parameter(torch.zeros(n_out, rank, device=W.device))

    def forward(self, W):
        """The weight (out, in): fp32, or W as it is while the adapter is off."""
        if not self.enabled:
            return W
        # The sum is fp32: bf16 would round small updates away. Autocast casts it afterwards.
        with torch.autocast(W.device.type, enabled=False):
            return torch.addmm(W.float(), self.B, self.A, alpha=self.scale)


def add_lora(model, rank, alpha, dtype):
    """Freeze `model` and add a LowRank to every linear layer of its decoder, in place.

    The frozen linear layers are cast to `dtype`, that of their products, and take half the memory
    in bf16. Autocast would cast them at every use anyway. Embedding and norms stay fp32 (see
    frozen_copy). Raises UserError if a layer has other matrices, such as experts.
    """
    model.requires_grad_(False)
    classes = {}  # base classes of a linear layer -> its class with LoRA
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    if head.weight is not embedding:
        head.to(dtype)
    for layer in model.base_model.layers:
        linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
        in_linears = {id(linear.weight) for linear in linears}
        for name, parameter in layer.named_parameters():
            if parameter.dim() > 1 and id(parameter) not in in_linears:
                raise UserError(f'lora_rank: {name} is not the weight of a linear layer, and would '
                                'stay as it is; LoRA is for dense models, take --lora_rank=0')
        for linear in linears:
            linear.to(dtype)
            low_rank = LowRank(linear.weight, rank, alpha)
            # unsafe: the weight that it computes is fp32, where W is bf16
            parametrize.register_parametrization(linear, 'weight', low_rank, unsafe=True)
            # parametrize makes a new class for each layer. With one class for all, torch.compile
            # compiles a decoder layer once, and not each of them, of which it allows eight.
            linear.__class__ = classes.setdefault(linear.__class__.__bases__, linear.__class__)
    # A checkpoint holds the adapters alone. A run goes on only from the weights that it began with.
    model.base_hash = hash_of_weights(p for p in model.parameters() if not p.requires_grad)


def lora_layers(model):
    """{name: linear layer} of the linear layers that have a LowRank."""
    return {name: module for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and parametrize.is_parametrized(module, 'weight')}


def low_rank_of(linear):
    """The LowRank of a linear layer that has one."""
    return linear.parametrizations.weight[0]


def is_adapter(name):
    """Whether a parameter of this name is the A or B of a LowRank."""
    return '.parametrizations.weight.0.' in name


def name_without_lora(name):
    """The name that a frozen weight has in a model without LoRA."""
    return name.replace('.parametrizations.weight.original', '.weight')


@contextmanager
def adapter_off(model):
    """While the context lasts, the linear layers have their frozen weights: the start model's."""
    layers = lora_layers(model).values()
    for linear in layers:
        low_rank_of(linear).enabled = False
    try:
        yield
    finally:
        for linear in layers:
            low_rank_of(linear).enabled = True


def hash_of_weights(parameters):
    """sha256 of the bytes of all parameters, as text."""
    digest = hashlib.sha256()
    for parameter in parameters:
        # numpy has no bf16, so pass bytes
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_adapter(model, folder):
    """Write the adapter of a model with LoRA to `folder`, in the format of the library peft.

    It belongs to the model that the run began with, its positions as they were in the run:
    PeftModel.from_pretrained(that_model, folder) gives the merged model.
    """
    tensors = {}
    for name, linear in lora_layers(model).items():
        low_rank = low_rank_of(linear)
        prefix = f'base_model.model.{name}'
        tensors[f'{prefix}.lora_A.weight'] = low_rank.A.detach().cpu()
        tensors[f'{prefix}.lora_B.weight'] = low_rank.B.detach().cpu()
    os.makedirs(folder)
    save_file(tensors, os.path.join(folder, 'adapter_model.safetensors'), metadata={'format': 'pt'})

    rank = low_rank.A.shape[0]
    settings = {
        'peft_type': 'LORA',
        'task_type': 'CAUSAL_LM',
        'base_model_name_or_path': model.name_or_path,
        'r': rank,
        'lora_alpha': low_rank.scale * rank,
        'target_modules': sorted({name.rpartition('.')[2] for name in lora_layers(model)}),
        'lora_dropout': 0.0,
        'bias': 'none',
        'inference_mode': True}
    with open(os.path.join(folder, 'adapter_config.json'), 'w') as file:
        json.dump(settings, file, indent=1)


# --- reference ----------------------------------------------------------------
def start_model(policy, dtype):
    """What the KL is taken to: called as `policy` is, it gives the log-probs of the policy as it is now.

    Make it before the first update. With LoRA it is the policy with its adapter off, and takes no
    memory. Else it is a frozen copy, its linear layers in `dtype`.
    """
    if lora_layers(policy.model):
        return WithoutAdapter(policy)
    return Policy(frozen_copy(policy.model, dtype))


class WithoutAdapter:
    """A policy with LoRA, called while its adapter is off."""

    def __init__(self, policy):
        self.policy = policy

    def __call__(self, *arguments, **options):
        with adapter_off(self.policy.model):
            return self.policy(*arguments, **options)


def frozen_copy(model, dtype):
    """A copy of `model` without gradients, its linear layers in `dtype`: the reference of a KL."""
    return freeze(copy.deepcopy(model), dtype)


def freeze(model, dtype):
    """`model` without gradients, its linear layers in `dtype`, in place.

    Autocast would cast the linear layers at every use. Casting them once gives the same results and
    halves their memory. Embedding and norms are fp32: they make the residual stream, which is fp32
    in the policy. With a bf16 stream the KL of a policy to itself would not be 0.
    """
    model.eval().requires_grad_(False)
    embedding = model.get_input_embeddings().weight
    for layer in model.modules():
        # A tied head is the embedding, and stays as it is.
        is_linear = isinstance(layer, nn.Linear) and layer.weight is not embedding
        for parameter in layer.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype if is_linear else torch.float32)
    return model


def load_teacher(name, device, dtype, student):
    """The model `name` as a frozen Policy, from which the model `student` is to learn. Raises UserError.

    It is read in `dtype`, so that a large teacher never takes the memory of fp32 weights.
    """
    teacher = load_model(name, device, dtype)
    # Models of a family may have different padding behind the tokenizer's ids. With the student's
    # number of rows the teacher can sample no id that the student does not have, and score any that
    # it has.
    n_ids = student.get_output_embeddings().weight.shape[0]
    n_ids_of_teacher = teacher.get_output_embeddings().weight.shape[0]
    if n_ids != n_ids_of_teacher:
        teacher.resize_token_embeddings(n_ids, mean_resizing=False)
        # Ids that only the student has are padding. The teacher gives them a logit of 0.
        with torch.no_grad():
            teacher.get_input_embeddings().weight[n_ids_of_teacher:] = 0
            teacher.get_output_embeddings().weight[n_ids_of_teacher:] = 0
    return Policy(freeze(teacher, dtype))


# --- ranks --------------------------------------------------------------------
def shard_weights(policy):
    """Divide the weights of a Policy among the ranks, in place (FSDP2, torch's fully_shard).

    Each rank keeps its part of every weight. A layer gathers its whole weights before its
    forward and again before its backward, and frees them afterwards. Its gradient is averaged over
    the ranks, as DDP's is, and each rank keeps its part of it. So every forward and every backward
    needs all ranks. Autocast casts as it does elsewhere: the numerics are those of whole weights.
    """
    # imported here, because it takes half a second and few runs use it
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    # the ranks in a row; without it fully_shard would take the GPUs of a machine that has some
    mesh = init_device_mesh(policy.model.device.type, (torch.distributed.get_world_size(),))
    for layer in policy.model.base_model.layers:
        fully_shard(layer, mesh=mesh)
    # What is outside the layers: embedding, last norm, head. By default they would stay whole after
    # a forward, because a backward needs them soon. After a forward without one they would stay so.
    fully_shard(policy, mesh=mesh, reshard_after_forward=True)


def is_sharded(model):
    """Whether shard_weights has divided this model's weights."""
    return any(hasattr(parameter, 'full_tensor') for parameter in model.parameters())


def whole(tensor):
    """The whole of a tensor of which each rank may hold a part. All ranks must call it."""
    if not hasattr(tensor, 'full_tensor'):
        return tensor
    # torch 2.11 cannot gather in inference mode, in which rollouts are made
    with torch.inference_mode(False), torch.no_grad():
        return tensor.full_tensor()


def local_part(tensor):
    """This rank's part of a tensor that may be sharded, as a plain tensor that shares its memory."""
    return tensor.to_local() if hasattr(tensor, 'to_local') else tensor


def head_size(config):
    """Width of an attention head."""
    return getattr(config, 'head_dim', None) or config.hidden_size // config.num_attention_heads


# --- checks -------------------------------------------------------------------
# settings that memory_plan and the rollouts read
SETTINGS_READ = (
    'vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'head_dim',
    'num_attention_heads', 'num_key_value_heads', 'max_position_embeddings')
# settings that only quantised checkpoints have, and the method to name if the setting names none
QUANTISED = {
    'quantization_config': 'bitsandbytes',
    'compression_config': 'compressed-tensors',
    'quantization': 'MLX'}
# settings that change logits, inside attention or after the head, in ways not implemented here
LOGIT_CHANGES = (
    'final_logit_softcapping', 'attn_logit_softcapping', 'logit_scale', 'logits_scaling')


def check_settings(name, config):
    """UserError if a configuration asks for something that is not implemented here."""
    method = quantised_by(config)
    if method:
        raise UserError(f'model {name}: its weights are quantised ({method}), which cannot be '
                        'trained: take the same model with bf16 or fp32 weights')

    for rope in rope_types(config):
        # The frequencies of these types follow the longest document of a batch, and the log-probs
        # would follow them. 'su' is the older name of longrope.
        if 'dynamic' in rope or rope in ('longrope', 'su'):
            raise UserError(f'model {name}: rotary embeddings of type {rope} are not supported: a '
                            'document\'s log-probs would depend on the documents packed beside it')

    # A model of text and images has these settings one level below, where nothing here looks.
    lacking = [key for key in SETTINGS_READ if type(setting(config, key)) is not int]
    if lacking:
        raise UserError(f'model {name}: config.json has no {", ".join(lacking)}: use a Llama-, '
                        'Qwen- or Mistral-like model of text alone')

    for key in LOGIT_CHANGES:
        if getattr(config, key, None) not in (None, 1, 1.0):
            raise UserError(f'model {name}: {key} is not supported; use a Llama-, Qwen- or '
                            'Mistral-like one')
    if config.model_type == 'phimoe':
        raise UserError(f'model {name}: its experts are drawn at random in training, which would '
                        'score another distribution than the one sampled from')
    # Other architectures pass their sliding window to attention, which checks it. This one has it
    # only in the mask that transformers builds, and attention here takes no mask.
    if config.model_type == 'qwen2_moe' and 'sliding_attention' in (config.layer_types or []):
        raise UserError(f'model {name}: the sliding window of {config.model_type} is not '
                        'supported')


def quantised_by(config):
    """The method that quantised a checkpoint, by its configuration; None if it is not quantised."""
    for part in (config, config.get_text_config()):
        for key, usual_method in QUANTISED.items():
            settings = getattr(part, key, None)
            if not settings:
                continue
            if isinstance(settings, dict):
                return settings.get('quant_method') or usual_method
            # an object of one of transformers' quantisation classes
            return getattr(settings, 'quant_method', usual_method)
    return None


def rope_types(config):
    """The types of rotary embeddings in a configuration: one, or one for each type of layer."""
    text_config = config.get_text_config()
    to_visit = [getattr(text_config, key, None) for key in ('rope_parameters', 'rope_scaling')]
    found = []
    while to_visit:
        settings = to_visit.pop()
        if not isinstance(settings, dict):
            continue
        for key in ('rope_type', 'type'):  # 'type' is the older spelling
            if isinstance(settings.get(key), str):
                found.append(settings[key])
        # Settings for each type of layer are dicts one level below.
        to_visit += settings.values()
    return found


def setting(config, key):
    """A setting that is the same in all layers; None if there is none."""
    try:
        if key == 'head_dim':
            return head_size(config)
        return getattr(config, key, None)
    except Exception:  # it differs by layer (Gemma 4), or a setting that it follows from is missing
        return None


def check_loading(name, model, report):
    """UserError unless every weight of the model came from the checkpoint `name`, and fits.

    `report` is from_pretrained's. Weights under missing_keys got random values. Those under
    unexpected_keys are in the checkpoint, and the model has no place for them.
    """
    missing = sorted(report['missing_keys'])
    unexpected = sorted(report['unexpected_keys'])
    mismatched = sorted(report['mismatched_keys'])

    if missing:
        # If a wrapper left a prefix such as 'module._orig_mod.', every name is missing. Then the
        # example of an unexpected name tells why.
        others = f'; it has others, like {unexpected[0]}' if unexpected else ''
        raise UserError(
            f'model {name}: {len(missing)} of its {len(model.state_dict())} weights are not in the '
            f'checkpoint, first {missing[0]}{others}: they would be random')
    if mismatched:
        weight, shape_in_file, shape_in_model = mismatched[0]
        raise UserError(
            f'model {name}: weights with other shapes than config.json says: {len(mismatched)}, '
            f'first {weight}: {list(shape_in_file)} in the checkpoint, '
            f'{list(shape_in_model)} by config.json')
    if report['error_msgs']:
        raise UserError(f'model {name}: {first_line(report["error_msgs"][0])}')

    # Without a part of one of its layers the model would compute something else. Other parts, such
    # as a vision tower, can be left out.
    for weight in unexpected:
        if is_part_of(model, weight, unexpected):
            raise UserError(
                f'model {name}: the checkpoint has {weight}, for which the model of its '
                'config.json has no place: it would compute something else')
    if unexpected and RANK == 0:
        print(f'model {name}: weights of the checkpoint for which the model has no place are left '
              f'out: {len(unexpected)}, first {unexpected[0]}')


def is_part_of(model, weight, unexpected):
    """Whether the checkpoint's `weight`, one of `unexpected`, belongs to a part that `model` has.

    A bias, a norm inside a layer and one more layer of the same type do. A vision tower and layers
    that predict further tokens do not: they are parts of their own.
    """
    # Older versions of transformers saved these buffers; today they are computed.
    if 'rotary_emb.' in weight:
        return False

    # the innermost module of the model on the weight's path; '' is the model itself
    modules = dict(model.named_modules())
    path = weight.rpartition('.')[0]
    while path not in modules:
        path = path.rpartition('.')[0]
    owner = modules[path]

    # In the list of layers, only the next layer counts.
    if isinstance(owner, nn.ModuleList):
        number = weight.removeprefix(f'{path}.').split('.')[0]
        prefix = f'{path}.{number}.'
        names = {name.removeprefix(prefix) for name in unexpected if name.startswith(prefix)}
        return number == str(len(owner)) and is_like_a_layer(names, owner)
    # Inside a layer, everything counts. Beside the layers nothing does.
    return owner is not model and owner is not model.base_model


def is_like_a_layer(names, layers):
    """Whether one of the layers has weights of exactly these names.

    A layer that predicts further tokens has some that no other layer has.
    """
    return any(names == set(layer.state_dict()) for layer in layers)


@torch.no_grad()
def check_logits(name, model):
    """UserError unless documents in a packed row get the logits that transformers gives each alone.

    Some architectures do not pass their arguments down to attention. Some also mix tokens by
    convolutions or recurrences, which would cross from one document to the next. Some attend in
    ways not implemented here (sinks, biases by distance), or change the logits after the head.
    """
    lengths = [5, 8]
    ids = torch.arange(1, 14, device=model.device) % model.config.vocab_size  # (13,)
    documents = Documents(lengths, model.device)
    model.eval()  # load_model, the caller, returns to training mode
    try:
        hidden = hidden_states(model, ids, documents)  # (13, hidden)
        packed = F.linear(hidden, model.get_output_embeddings().weight).float()  # (13, V)

        model.set_attn_implementation('eager')
        alone = torch.cat([
            model(input_ids=document[None], use_cache=False).logits[0].float()
            for document in ids.split(lengths)])  # (13, V)
        model.set_attn_implementation('nanopost')
        error = ((packed - alone).norm() / alone.norm()).item()
    except Exception as problem:  # any architecture's code runs here, and may raise anything
        if out_of_memory(problem):
            raise
        raise UserError(f'model {name}: {type(model).__name__} cannot be run with packed '
                        f'documents: {first_line(problem)}') from problem

    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    # `not <` refuses NaN too.
    if not error < tolerance:
        raise UserError(f'model {name}: {type(model).__name__} is not supported: with packed '
                        f'documents its logits differ by {error:.2g} of their norm')


def check_token_ids(model, tokenizer, rows):
    """UserError if a row (a dict with 'ids', a list or an array) has an id that the model lacks.

    Only ids in use count: a tokenizer may know more tokens than the model if no row contains them.
    """
    input_size = model.get_input_embeddings().weight.shape[0]
    output_size = model.get_output_embeddings().weight.shape[0]
    size = min(input_size, output_size)

    # The end of a turn may be in no row, but sampling stops at it. The pad token is in no row, but
    # save_model writes it to config.json, and a folder with a pad id out of range cannot be loaded.
    for token_id in (*data.stop_ids(tokenizer), tokenizer.pad_token_id):
        if token_id is not None:
            check_token_id(token_id, 'the tokenizer', size, tokenizer)

    for row in rows:
        ids = row['ids']
        if len(ids) == 0:
            continue
        # An array's own max is fast; Python's max would visit its numbers one by one.
        largest = ids.max() if hasattr(ids, 'max') else max(ids)
        check_token_id(largest, row.get('where', 'a row'), size, tokenizer)


def check_token_id(token_id, where, size, tokenizer):
    """UserError, which names the place `where`, unless token_id is below `size`."""
    if token_id < size:
        return
    token = tokenizer.convert_ids_to_tokens(int(token_id))
    raise UserError(
        f'{where} has the token id {token_id}, {token!r}: the tokenizer knows {len(tokenizer)} '
        f'tokens, but the model only {size}. Take the tokenizer and the template that belong to '
        'the model, or enlarge the model first (resize_token_embeddings, save_pretrained)')


def first_line(error):
    """The line of an exception that says most: one line for the user."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    # The text of a KeyError is the key alone.
    if isinstance(error, KeyError):
        return f'KeyError: {lines[0]}'
    # A first line that ends in a colon is a heading. The next line belongs to it.
    if lines[0].endswith(':'):
        return ' '.join(' '.join(lines[:2]).split())
    return lines[0]


def out_of_memory(error):
    """Whether an exception says that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # torch's CPU allocator raises a plain RuntimeError.
    return re.search('out of memory|allocate memory', str(error)) is not None


# --- memory -------------------------------------------------------------------
def memory_plan(config, world_size, micro_batch_tokens, activation_checkpointing=True,
                shard='optimizer', bf16=True, reference=False, kv_cache_gb=0.0, rollout_rows=0,
                max_new_tokens=1, lora_rank=0, teacher=None, teacher_samples=False,
                whole_distributions=False):
    """Memory of a GPU by use, in GB (1e9 bytes), as a dict. 'peak' is the sum at the worst moment.

    A step has two phases, rollout and update, and the peak is that of the larger one. There is a
    rollout if kv_cache_gb > 0: this GPU has to sample at most `rollout_rows` completions, each of
    `max_new_tokens`. `shard` and `lora_rank` are the scripts' knobs. `teacher` is the configuration
    of distill.py's; teacher_samples says that it samples too, whole_distributions that the
    divergence is not 'sampled'. Left out: the CUDA context and the libraries' workspaces, about 1 GB,
    and what the allocator loses to fragments.
    """
    sizes = sizes_of_config(config)
    compute_bytes = 2 if bf16 else 4  # of a number in a matrix product
    sharded = shard == 'all' and world_size > 1

    # held in both phases: weights, Adam's two fp32 moments of each that is trained, a reference
    always = {}
    if lora_rank:
        trained = lora_rank * sizes.lora_width
        always['frozen weights'] = frozen_bytes(sizes, compute_bytes)
        always['adapters (fp32)'] = 4 * trained
        # its reference is the policy with the adapter off, and takes no memory
    else:
        trained = sizes.weights
        weight_shards = world_size if sharded else 1
        of_shards = f' / {weight_shards}' if sharded else ''
        always['weights (fp32)' + of_shards] = 4 * sizes.weights / weight_shards
        if reference:
            always['reference' + of_shards] = frozen_bytes(sizes, compute_bytes) / weight_shards
    if teacher is not None:
        teacher_shards = world_size if sharded else 1
        of_shards = f' / {teacher_shards}' if sharded else ''
        teacher_sizes = sizes_of_config(teacher)
        always['teacher' + of_shards] = frozen_bytes(teacher_sizes, compute_bytes) / teacher_shards
    adam_shards = 1 if shard == 'none' else world_size
    always[f'Adam moments / {adam_shards}'] = 8 * trained / adam_shards

    rollout = {}
    if kv_cache_gb:
        rollout = rollout_bytes(
            config, sizes, compute_bytes, kv_cache_gb, rollout_rows, max_new_tokens, sharded)
        if teacher_samples:
            # one after the other: what counts is the larger
            of_teacher = rollout_bytes(teacher, teacher_sizes, compute_bytes, kv_cache_gb,
                                       rollout_rows, max_new_tokens, sharded)
            rollout = max(rollout, of_teacher, key=lambda use: sum(use.values()))
    update = update_bytes(config, sizes, bf16, micro_batch_tokens, activation_checkpointing)
    if whole_distributions:
        # a chunk's fp32 logits and log-probs of both models, and what a divergence makes of them
        update['divergence of a chunk'] = 8 * 4 * LOGITS_PER_CHUNK
        # the teacher's head, gathered and cast; the gradient of the student's, of a chunk and summed
        update['heads'] = (compute_bytes + 4 * sharded) * teacher_sizes.embedding + 8 * sizes.embedding
    if lora_rank:
        # the head is frozen
        update['logits chunk and head gradient'] -= sizes.embedding * (6 if bf16 else 4)
        # while the largest matrix is merged, in fp32: W, the sum, its gradient; in bf16: the last two
        update['a merged matrix'] = sizes.largest * (16 if bf16 else 12)
        if not bf16:
            # backward needs the merged weights: all that are not computed again
            kept = sizes.layer if activation_checkpointing else sizes.weights - sizes.embedding
            update['merged weights'] = 4 * kept
    if sharded:
        # Two layers are whole at a time. One of them has its whole gradient, and the buffer in which
        # it is averaged.
        layer_bytes = (2 + 1 + 1) * 4 * sizes.layer
        # Embedding, last norm and head: weight, gradient, buffer. The head's gradient is counted above.
        outside = sizes.weights - config.num_hidden_layers * sizes.layer
        update['whole layers, embedding, head'] = layer_bytes + 12 * outside - 4 * sizes.embedding

    # DDP keeps gradients in buckets that stay. Else they are freed after each update.
    keeps_gradients = world_size > 1 and not sharded
    phase_of_gradients = always if keeps_gradients else update
    phase_of_gradients['gradients (fp32)'] = 4 * trained / (world_size if sharded else 1)

    plan = {**always, **rollout, **update}
    plan['peak'] = sum(always.values()) + max(sum(rollout.values()), sum(update.values()))
    return {key: size / 1e9 for key, size in plan.items() if size}


class Sizes(NamedTuple):
    """Sizes of a model, in numbers."""
    weights: int  # of the whole model
    embedding: int  # of the embedding, and of the head too
    layer: float  # of a layer, on average
    largest: int  # of the largest linear layer of the decoder
    lora_width: int  # inputs and outputs of all these: a LoRA has rank times as many numbers


def sizes_of_config(config):
    """The Sizes of the model that a configuration describes."""
    with torch.device('meta'):
        return model_sizes(AutoModelForCausalLM.from_config(config))


def model_sizes(model):
    """The Sizes of a model, which may be on the meta device."""
    layers = model.base_model.layers
    linears = [module for module in layers.modules() if isinstance(module, nn.Linear)]
    return Sizes(
        weights=sum(p.numel() for p in model.parameters()),
        embedding=model.get_input_embeddings().weight.numel(),
        layer=sum(p.numel() for p in layers.parameters()) / len(layers),
        largest=max(linear.weight.numel() for linear in linears),
        lora_width=sum(linear.in_features + linear.out_features for linear in linears))


def frozen_bytes(sizes, compute_bytes):
    """Bytes of weights of which every matrix but the embedding is in the compute dtype."""
    return compute_bytes * sizes.weights + (4 - compute_bytes) * sizes.embedding


def rollout_bytes(config, sizes, compute_bytes, kv_cache_gb, rollout_rows, max_new_tokens, sharded):
    """Memory of a rollout by use, in bytes, for a model of these Sizes."""
    kv_width = head_size(config) * 2 * config.num_key_value_heads
    token_bytes = config.num_hidden_layers * kv_width * compute_bytes
    cache_bytes = kv_cache_gb * 1e9
    rows_that_fit = cache_bytes / (max_new_tokens * token_bytes)
    rows = min(rollout_rows, rows_that_fit)
    # for each token of the vocabulary: logit, fp32 log-prob, fp32 probability, fp64 sum. All of
    # them stay in the memory pool of the CUDA graphs.
    sampling_bytes = compute_bytes + 4 + 4 + 8
    copy_bytes = compute_bytes * sizes.weights
    if sharded:
        # a whole fp32 embedding, which is otherwise the model's own
        copy_bytes += 4 * sizes.embedding
    return {
        'decode copy': copy_bytes,
        'KV cache': cache_bytes,
        'sampling': rows * config.vocab_size * sampling_bytes}


def update_bytes(config, sizes, bf16, micro_batch_tokens, activation_checkpointing):
    """Memory of an update by use but for gradients, in bytes, for a model of these Sizes."""
    hidden = config.hidden_size
    layers = config.num_hidden_layers
    compute_bytes = 2 if bf16 else 4
    cast_bytes = 2 if bf16 else 0  # of a number's bf16 copy beside the fp32 one

    # For backward, a layer keeps of each token: norms; queries, keys and values, and their
    # rotations; gate, up and their product in the feed-forward.
    query_key_value_heads = config.num_attention_heads + 2 * config.num_key_value_heads
    attention_width = head_size(config) * query_key_value_heads
    numbers_of_layer = 12 * hidden + 4 * attention_width + 4 * config.intermediate_size
    layer_activations = numbers_of_layer * compute_bytes

    if activation_checkpointing:
        # Each layer keeps its fp32 input. One layer at a time is computed again, with its casts.
        activations = layers * hidden * 4 + 2 * layer_activations
        cast_weights = sizes.layer + sizes.embedding
    else:
        # Autograd keeps the bf16 cast of every linear layer's weight for backward.
        activations = layers * layer_activations
        cast_weights = sizes.weights

    # TokenLogprobs holds a chunk's logits and softmax in fp32, and one of them in bf16 too,
    chunk = LOGITS_PER_CHUNK * (8 + cast_bytes)
    # and the head's gradient in fp32, with a chunk's share of it in bf16.
    head_gradient = sizes.embedding * (4 + cast_bytes)
    return {
        'autocast casts (bf16)': cast_bytes * cast_weights,
        'activations': micro_batch_tokens * activations,
        'logits chunk and head gradient': chunk + head_gradient}


# --- packed rows --------------------------------------------------------------
class VarlenPlan(NamedTuple):
    """What packed_varlen reads of a packed row with S segments."""
    query_bounds: torch.Tensor  # (S + 1,) int32: where each segment's queries begin, and the end
    key_bounds: torch.Tensor  # (S + 1,) int32: the same of each segment's keys, in `keys`
    keys: torch.Tensor | None  # places in the row of every segment's keys; None: the row as it is


class GroupKey(NamedTuple):
    """Segments with the same key share a call of SDPA. The groups are sorted by their keys."""
    padded_length: int
    has_parent: bool


class PaddedGroup(NamedTuple):
    """n segments, padded on the right to the longest of them, as places in the packed row."""
    queries: torch.Tensor  # (n, q)
    keys: torch.Tensor  # (n, k)
    mask: torch.Tensor | None  # (n, 1, q, k), 0 or -inf; None: causal


class SdpaPlan(NamedTuple):
    """What packed_sdpa reads of a packed row with T tokens."""
    groups: list[PaddedGroup]
    places: torch.Tensor  # (T,) where to find each token in the groups' outputs, laid end to end


def padded_length(length):
    """A segment's length rounded up: to the next power of two, above 64 to the next eighth of it.

    3 becomes 4, 33 becomes 64, 64 stays. From 65 to 128 the steps are 128 / 8 = 16 tokens wide: 65
    becomes 80, and 81 becomes 96. From 129 to 256 they are 32 wide: 129 becomes 160.
    """
    power = 2 ** (length - 1).bit_length()
    # Padding costs most where segments are long, so their steps are finer.
    step = power if power <= 64 else power // 8
    return step * math.ceil(length / step)


class Documents:
    """Index plan for attention inside each document of a packed row, and never across documents.

    A packed row is S segments end to end, T tokens in all. Usually each segment is a document:

        lengths [3, 2, 3]     document 0   document 1   document 2
        place in the row       0   1   2     3   4       5   6   7
        position_ids           0   1   2     0   1       0   1   2

    A prompt can be in the row once for several completions. Then parents[i] is the segment that
    segment i continues, or -1. A query sees the keys marked x: all of the parent, and its own
    segment up to itself.

        lengths [3, 2, 3]       prompt     completion 1  completion 2
        parents [-1, 0, 0]
        place in the row       0   1   2     3   4         5   6   7
        position_ids           0   1   2     3   4         3   4   5
        previous              -1   0   1     2   3         2   5   6

                         keys  0   1   2     3   4         5   6   7
        query 0                x
              1                x   x
              2                x   x   x
              3                x   x   x     x
              4                x   x   x     x   x
              5                x   x   x                   x
              6                x   x   x                   x   x
              7                x   x   x                   x   x   x

    So a completion gets the same results as in a document of its own that begins with the prompt.
    A parent has no parent itself.

    lengths       (S,) tokens of each segment, on the CPU
    position_ids  (T,) on `device`: place of each token in its document
    previous      (T,) on `device`: place in the row of the token before, in the same document;
                  for the first token of a document it has no meaning
    longest       tokens of the longest segment
    longest_keys  the most keys that a query sees
    """

    def __init__(self, lengths, device, parents=None):
        """`lengths` and `parents` are lists of ints; parents=None: every segment is a document."""
        if not parents:
            parents = [-1] * len(lengths)
        parents = torch.tensor(parents)  # (S,)
        has_parent = parents >= 0  # (S,)
        self.device = device
        self.lengths = torch.tensor(lengths)  # (S,)
        ends = self.lengths.cumsum(0)  # (S,)
        self.starts = ends - self.lengths  # (S,)

        # For a segment without parent, index -1 reads the last segment. torch.where replaces the
        # length by 0, and with a length of 0 the start is not used.
        self.parent_lengths = torch.where(has_parent, self.lengths[parents], 0)  # (S,)
        self.parent_starts = self.starts[parents]  # (S,)

        # A segment's last query sees the most keys.
        self.keys_seen = self.parent_lengths + self.lengths  # (S,)
        self.longest = max(lengths)
        self.longest_keys = int(self.keys_seen.max())

        # A completion's positions continue those of its prompt.
        places = torch.arange(int(ends[-1]))  # (T,)
        in_segment = places - self.starts.repeat_interleave(self.lengths)  # (T,)
        position_ids = in_segment + self.parent_lengths.repeat_interleave(self.lengths)  # (T,)
        self.position_ids = position_ids.to(device)

        # The token before a completion's first is its prompt's last.
        previous = places - 1  # (T,)
        previous[self.starts[has_parent]] = ends[parents[has_parent]] - 1
        self.previous = previous.to(device)

    def keys_of(self, segments):
        """Places in the row of the keys that `segments` (n,) see, parent first: (n, k), on the CPU.

        k is the most keys that one of them sees. The others repeat their last key to fill up.
        """
        parent_lengths = self.parent_lengths[segments, None]  # (n, 1)
        keys_seen = self.keys_seen[segments, None]  # (n, 1)
        # places in the parent and the segment, laid end to end: 0, 1, 2, ..., the last one repeated
        in_document = torch.minimum(torch.arange(int(keys_seen.max())), keys_seen - 1)  # (n, k)
        # the same places in the packed row
        if_in_parent = self.parent_starts[segments, None] + in_document  # (n, k)
        if_in_segment = self.starts[segments, None] + in_document - parent_lengths  # (n, k)
        return torch.where(in_document < parent_lengths, if_in_parent, if_in_segment)

    @functools.cached_property
    def varlen_plan(self):
        """VarlenPlan: each completion has its prompt's keys once more before its own."""
        query_bounds = F.pad(self.lengths.cumsum(0), (1, 0))  # (S + 1,)
        key_bounds = F.pad(self.keys_seen.cumsum(0), (1, 0))  # (S + 1,)
        keys = None
        if self.parent_lengths.any():
            every_segment = torch.arange(len(self.lengths))
            padded_keys = self.keys_of(every_segment)  # (S, k)
            is_key = torch.arange(padded_keys.shape[1]) < self.keys_seen[:, None]  # (S, k)
            keys = padded_keys[is_key].to(self.device)
        return VarlenPlan(
            query_bounds.to(self.device, torch.int32),
            key_bounds.to(self.device, torch.int32),
            keys)

    @functools.cached_property
    def sdpa_plan(self):
        """SdpaPlan: segments of about the same length are padded on the right, to share a call.

        The plan is made once, on the CPU. If each layer found the tokens among the padding by a
        boolean index, each layer would wait for the GPU.
        """
        segments_of = {}  # GroupKey -> numbers of its segments
        parent_lengths = self.parent_lengths.tolist()
        for segment, length in enumerate(self.lengths.tolist()):
            key = GroupKey(padded_length(length), has_parent=parent_lengths[segment] > 0)
            segments_of.setdefault(key, []).append(segment)

        groups = []
        places = torch.empty(int(self.lengths.sum()), dtype=torch.long)  # (T,)
        outputs_so_far = 0  # of the groups before, padding included
        for key in sorted(segments_of):
            group, is_token = self.padded_group(torch.tensor(segments_of[key]), key.has_parent)
            place_in_group = is_token.flatten().nonzero()[:, 0]  # (tokens of the group,)
            places[group.queries[is_token]] = outputs_so_far + place_in_group
            outputs_so_far += is_token.numel()
            groups.append(self.on_device(group))
        return SdpaPlan(groups, places.to(self.device))

    def padded_group(self, segments, has_parent):
        """PaddedGroup of `segments` (n,) on the CPU, and which queries are tokens: (n, q)."""
        lengths = self.lengths[segments, None]  # (n, 1)
        in_segment = torch.arange(int(lengths.max()))  # (q,)
        is_token = in_segment < lengths  # (n, q)
        # Padding repeats the last token. It comes after all tokens, so no token sees it.
        queries = self.starts[segments, None] + torch.minimum(in_segment, lengths - 1)  # (n, q)
        keys = self.keys_of(segments)  # (n, k)
        if not has_parent:
            return PaddedGroup(queries, keys, None), is_token

        # A query sees its whole parent, and its segment up to itself.
        last_seen = self.parent_lengths[segments, None] + in_segment  # (n, q)
        is_seen = torch.arange(keys.shape[1]) <= last_seen[..., None]  # (n, q, k)
        mask = is_seen[:, None].float().log()  # (n, 1, q, k): log 1 = 0, log 0 = -inf
        return PaddedGroup(queries, keys, mask), is_token

    def on_device(self, group):
        """A PaddedGroup moved from the CPU to the documents' device."""
        mask = None if group.mask is None else group.mask.to(self.device)
        return PaddedGroup(group.queries.to(self.device), group.keys.to(self.device), mask)


# --- attention ----------------------------------------------------------------
# A compiled layer breaks its graph here: the index plan differs from one packed row to the next.
@torch.compiler.disable
def attention(module, q, k, v, mask, scaling=None, documents=None, kv_slots=None,
              sliding_window=None, **_):
    """Attention with the arguments that transformers gives it.

    q (B, heads, L, head size), k and v (B, kv heads, L, head size)
    training: `documents` (Documents); B is 1, and the L tokens are a packed row
    prefill:  `documents` and `kv_slots` (decoder.KVCache), which keeps keys and values
    decoding: `kv_slots` alone; L is 1, and the new token of each of B rows sees the row's past

    `mask` is not used. Returns the output (B, L, heads, head size), and None in place of attention
    weights. Raises UserError where a sliding window would hide a key.
    """
    # Under autocast, fp32 norms and rotations make queries and keys fp32 again.
    q = q.to(v.dtype)
    k = k.to(v.dtype)

    # A sliding window is not implemented. It changes nothing for documents up to its width.
    longest = 0
    if documents is not None:
        longest = documents.longest_keys
    elif kv_slots is not None:
        longest = kv_slots.length
    if sliding_window is not None and longest > sliding_window:
        raise UserError(f'{longest} tokens exceed the sliding window ({sliding_window}) of this '
                        'model: lower max_length or max_new_tokens')

    # training and prefill
    if documents is not None:
        q = q[0].transpose(0, 1)  # (T, heads, head size)
        k = k[0].transpose(0, 1)  # (T, kv heads, head size)
        v = v[0].transpose(0, 1)
        if kv_slots is not None:
            kv_slots.write(module.layer_idx, k, v)
        output = packed_attention(q, k, v, documents, scaling)  # (T, heads, head size)
        return output[None], None

    if kv_slots is None:
        raise RuntimeError(
            "needs documents= or kv_slots=; for plain calls use load_model(attention='sdpa')")
    # decoding: each row has one new token, at index 0 of dimension 2
    kv_slots.write(module.layer_idx, k[:, :, 0], v[:, :, 0])
    output = kv_slots.attend(module.layer_idx, q[:, :, 0], scaling)  # (B, heads, head size)
    return output[:, None], None


# transformers knows no mask function of this name, so it builds no mask.
AttentionInterface.register('nanopost', attention)


def packed_attention(q, k, v, documents, scaling):
    """Causal attention inside each document, see packed_sdpa, by the fastest kernel that works."""
    packed = packed_varlen if varlen_works(q, k) else packed_sdpa
    return packed(q, k, v, documents, scaling)


def packed_sdpa(q, k, v, documents, scaling):
    """Causal attention inside each document, by torch's SDPA, one call for each group of the plan.

    q (T, heads, head size), k and v (T, kv heads, head size) -> (T, heads, head size).
    """
    groups, places = documents.sdpa_plan
    outputs = []
    for queries, keys, mask in groups:
        group_q = padded_batch(q, queries)  # (n, heads, q, head size)
        group_k = padded_batch(k, keys)  # (n, kv heads, k, head size)
        group_v = padded_batch(v, keys)
        if mask is not None:
            mask = mask.to(q.dtype)
        output = F.scaled_dot_product_attention(
            group_q, group_k, group_v, mask, is_causal=mask is None, scale=scaling, enable_gqa=True)
        outputs.append(output.transpose(1, 2).flatten(0, 1))  # (n * q, heads, head size)
    # The outputs hold padding too. Take those of the tokens, in the order of the row.
    return torch.cat(outputs).index_select(0, places)


def padded_batch(x, places):
    """The rows of x (T, heads, head size) at `places` (n, m): (n, heads, m, head size)."""
    batch = x.index_select(0, places.flatten())  # (n * m, heads, head size)
    return batch.unflatten(0, places.shape).transpose(1, 2)


def packed_varlen(q, k, v, documents, scaling):
    """packed_sdpa in one call of the varlen kernel (CUDA, bf16 or fp16)."""
    plan = documents.varlen_plan
    if plan.keys is not None:
        k = k.index_select(0, plan.keys)
        v = v.index_select(0, plan.keys)
    options = {'enable_gqa': True} if VARLEN_TAKES_GQA else {}
    # window_size=(-1, 0) means causal. With more keys than queries the kernel aligns their ends:
    # the last query sees all keys. So a completion's queries see the whole prompt, whose keys come
    # first.
    return varlen_attn(
        q, k, v, plan.query_bounds, plan.key_bounds, documents.longest, documents.longest_keys,
        scale=scaling, window_size=(-1, 0), **options)


def cached_sdpa(q, k, v, used, mask, scaling):
    """Attention of one query a row to the row's past, by torch's SDPA.

    q (B, heads, head size), k and v (B, length, kv heads, head size) -> (B, heads, head size)
    used (B,): row i sees its first used[i] keys
    mask (B, n): the same as 0 or -inf, for the first n keys; no row sees more
    """
    most_keys = mask.shape[1]
    k = k[:, :most_keys].transpose(1, 2)  # (B, kv heads, n, head size)
    v = v[:, :most_keys].transpose(1, 2)
    # The heads that share a key become several queries of one head, so that each key is read once.
    kv_heads = k.shape[1]
    q = q.unflatten(1, (kv_heads, -1))  # (B, kv heads, heads / kv heads, head size)
    mask = mask[:, None, None]  # (B, 1, 1, n)
    output = F.scaled_dot_product_attention(q, k, v, mask, scale=scaling)
    return output.flatten(1, 2)


def cached_varlen(q, k, v, used, mask, scaling):
    """cached_sdpa in one call of the varlen kernel (CUDA, bf16 or fp16).

    Its shapes do not depend on `used`, so that CUDA graphs can record it. `mask` is not used.
    """
    n_rows, length = k.shape[:2]
    query_bounds = torch.arange(n_rows + 1, device=q.device, dtype=torch.int32)  # one query a row
    key_bounds = query_bounds * length  # of which used[i] keys count

    # varlen_attn of torch 2.11 has no argument for the number of keys in use, so this calls the
    # operator under it. With a block table and several splits the kernel of torch 2.13 can write
    # NaN (pytorch issue 194167): hence no table, and one split.
    options = {'num_splits': 1} if FLASH_TAKES_SPLITS else {}
    output, *_ = FLASH_FORWARD(
        q, k.flatten(0, 1), v.flatten(0, 1), query_bounds, key_bounds, 1, length,
        dropout_p=0.0, is_causal=False, return_debug_mask=False, scale=scaling, seqused_k=used,
        **options)
    return output


def varlen_works(q, k):
    """Whether the varlen kernel takes q and k, and passed its self-test here at their shape."""
    if not q.is_cuda:
        return False
    if q.dtype not in (torch.bfloat16, torch.float16) or k.dtype != q.dtype:
        return False
    return varlen_is_right(q.device, q.dtype, q.shape[-2], k.shape[-2], q.shape[-1])


@functools.cache
def varlen_is_right(device, dtype, heads, kv_heads, head_dim):
    """Self-test at first use: packed attention, its gradients, and decoding against SDPA in fp32.

    Warns if it fails. The first use may be inside a checkpointed layer, whose hooks count the
    tensors that autograd saves. The layer runs again in backward, without this test, and must save
    as many. So the test sets hooks of its own, which keep its tensors from the layer's.
    """
    separate_hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    no_autocast = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), no_autocast, separate_hooks:
        q = random_tokens(heads, head_dim, device, dtype)  # (168, heads, head size)
        k = random_tokens(kv_heads, head_dim, device, dtype)  # (168, kv heads, head size)
        v = random_tokens(kv_heads, head_dim, device, dtype)
        documents = Documents([37, 1, 80, 50], device, [-1, -1, 0, 0])
        try:
            kernel = attention_results(packed_varlen, cached_varlen, q, k, v, documents)
            truth = attention_results(
                packed_sdpa, cached_sdpa, q.float(), k.float(), v.float(), documents)
            errors = [((a.float() - b).norm() / b.norm()).item() for a, b in zip(kernel, truth)]
            # A NaN is not below 0.02, so it fails the test.
            if all(error < 0.02 for error in errors):
                return True
            problem = f'relative errors {errors}'
        except (RuntimeError, TypeError) as error:  # GPU or head size unsupported, an older torch
            problem = first_line(error)
    warnings.warn(
        f'varlen attention fails its self-test, SDPA is used instead: {problem}', stacklevel=2)
    return False


def random_tokens(heads, head_dim, device, dtype):
    """Normal numbers (168, heads, head size) for the self-test, the same at every call."""
    generator = torch.Generator().manual_seed(heads)
    return torch.randn(168, heads, head_dim, generator=generator).to(device, dtype)


def attention_results(packed, cached, q, k, v, documents):
    """What the self-test compares: output and gradients of `packed`, output of `cached`.

    q, k and v are the 168 tokens of `documents`; for decoding k and v are 3 rows of 56 keys.
    """
    scaling = q.shape[-1] ** -0.5
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    output = packed(*inputs, documents, scaling)
    gradients = torch.autograd.grad(output.float().sin().sum(), inputs)

    used = torch.tensor([56, 7, 31], device=q.device, dtype=torch.int32)  # (3,)
    is_used = torch.arange(56, device=q.device) < used[:, None]  # (3, 56)
    mask = is_used.float().log()  # 0 or -inf
    keys = inputs[1].view(3, 56, -1, q.shape[-1])
    values = inputs[2].view(3, 56, -1, q.shape[-1])
    decoded = cached(q[:3], keys, values, used, mask, scaling)
    return [output, *gradients, decoded]


# --- token log-probs ----------------------------------------------------------
class TokenLogprobs(torch.autograd.Function):
    """Log-probs and entropies of target tokens from hidden states, a chunk of tokens at a time.

    For a token with hidden state h (hidden,) and target t, and a head W (V, hidden):

        z       = W h / temperature               the logits (V,)
        lse     = log sum_v exp z_v
        log p   = z - lse                         p is the softmax of z (V,)
        log p_t = z_t - lse                       the log-prob of the target
        H       = - sum_v p_v log p_v             the entropy, in nats
                = lse - sum_v p_v z_v

    The gradients with respect to z are

        d log p_t / dz = onehot(t) - p
        d H / dz       = - p (log p + H)

    With g_t and g_H the gradients of the loss with respect to log p_t and H,

        dL/dz = g_t (onehot(t) - p) - g_H p (log p + H)
        dL/dh = W^T dL/dz / temperature
        dL/dW = dL/dz h^T / temperature           summed over the tokens

    forward keeps lse and H of each token, and backward computes the logits again: there is never a
    tensor (N, V) of all N tokens. Chunks share their buffers, because new memory costs a CPU time.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, dtype):
        """hidden (N, hidden), weight W (V, hidden), targets (N,); `dtype` of the matrix products.

        Returns fp32 log-probs (N,) and entropies (N,).
        """
        n_tokens = len(targets)
        vocab_size = weight.shape[0]
        chunk = tokens_per_chunk(vocab_size)
        logprobs = torch.empty(n_tokens, device=hidden.device)
        entropy = torch.empty(n_tokens, device=hidden.device)
        lse = torch.empty(n_tokens, device=hidden.device)
        z_buffer = torch.empty(min(n_tokens, chunk), vocab_size, device=hidden.device)
        exp_buffer = torch.empty(min(n_tokens, chunk), vocab_size, device=hidden.device)
        W = weight.to(dtype)  # (V, hidden)

        for start in range(0, n_tokens, chunk):
            part = slice(start, start + chunk)
            h = hidden[part].to(dtype)  # (n, hidden)
            z = logits_into(z_buffer, h, W, temperature)  # (n, V)

            # lse = z_max + log sum exp(z - z_max), where exp cannot overflow
            z_max = z.amax(-1, keepdim=True)  # (n, 1)
            exp_z = torch.sub(z, z_max, out=exp_buffer[:len(h)]).exp_()  # (n, V)
            exp_sum = exp_z.sum(-1)  # (n,)
            lse[part] = exp_sum.log() + z_max[:, 0]

            # log p_t = z_t - lse
            z_t = z.gather(1, targets[part, None])[:, 0]  # (n,)
            logprobs[part] = z_t - lse[part]

            # H = lse - sum of p z, where p = exp_z / exp_sum
            exp_z_times_z = exp_z.mul_(z)  # (n, V)
            entropy[part] = lse[part] - exp_z_times_z.sum(-1) / exp_sum

        ctx.save_for_backward(hidden, weight, targets, lse, entropy)
        ctx.temperature = temperature
        ctx.dtype = dtype
        # An output that no loss uses has None for its gradient, instead of zeros.
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad_logprobs, grad_entropy):
        """Gradients of hidden and weight.

        grad_logprobs (N,) holds each token's g_t, grad_entropy (N,) its g_H. One that no loss uses
        is None.
        """
        hidden, weight, targets, lse, entropy = ctx.saved_tensors
        n_tokens = len(targets)
        vocab_size = weight.shape[0]
        chunk = tokens_per_chunk(vocab_size)
        z_buffer = torch.empty(min(n_tokens, chunk), vocab_size, device=hidden.device)
        W = weight.to(ctx.dtype)  # (V, hidden)
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = None  # a frozen head has no gradient
        if ctx.needs_input_grad[1]:
            # The sum over chunks is kept in fp32: a bf16 sum of hundreds of chunks drifts.
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)

        for start in range(0, n_tokens, chunk):
            part = slice(start, start + chunk)
            h = hidden[part].to(ctx.dtype)  # (n, hidden)
            z = logits_into(z_buffer, h, W, ctx.temperature)  # (n, V)
            log_p = z.sub_(lse[part, None])  # (n, V), in place of z

            if grad_entropy is not None:
                # dL/dz = - g_H times p (log p + H)
                p = log_p.exp()
                direction = (p * (log_p + entropy[part, None])).to(ctx.dtype)  # (n, V)
                scale = -grad_entropy[part, None] / ctx.temperature  # (n, 1)
                add_gradients(grad_hidden[part], grad_weight, direction, scale, h, W)

            if grad_logprobs is not None:
                # dL/dz = - g_t times (p - onehot(t))
                p = log_p.exp_()  # in place: nobody needs log p any more
                minus_one = torch.full_like(grad_logprobs[part, None], -1)  # (n, 1)
                p_minus_onehot = p.scatter_add_(1, targets[part, None], minus_one)  # (n, V)
                direction = p_minus_onehot.to(ctx.dtype)
                scale = -grad_logprobs[part, None] / ctx.temperature  # (n, 1)
                add_gradients(grad_hidden[part], grad_weight, direction, scale, h, W)

        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None


def tokens_per_chunk(vocab_size):
    """How many tokens' logits TokenLogprobs computes at once: one at least."""
    return max(1, LOGITS_PER_CHUNK // vocab_size)


def logits_into(buffer, h, W, temperature):
    """z = h W^T / temperature in fp32, in the first n rows of `buffer`.

    h (n, hidden), W (V, hidden) -> z (n, V)
    """
    z = buffer[:len(h)]  # (n, V)
    if h.dtype == torch.float32:
        torch.mm(h, W.T, out=z)
    else:
        # The product in bf16 rounds the logits as the sampler's does.
        z.copy_(h @ W.T)
    if temperature == 1:
        return z  # saves a pass over the logits
    return z.div_(temperature)


def add_gradients(grad_hidden, grad_weight, direction, scale, h, W):
    """Add one chunk's gradients to grad_hidden (n, hidden) and grad_weight (V, hidden), in place.

    grad_weight is None where the head is frozen. direction (n, V) times scale (n, 1) is the
    gradient with respect to h W^T. Both products apply the scale to their factor with few columns,
    (n, hidden).
    """
    grad_hidden.add_((direction @ W * scale).to(grad_hidden.dtype))
    if grad_weight is None:
        return
    scaled_h = (h * scale).to(W.dtype)  # (n, hidden)
    if W.dtype == torch.float32:
        grad_weight.addmm_(direction.T, scaled_h)
    else:
        grad_weight.add_(direction.T @ scaled_h)


# --- divergences --------------------------------------------------------------
class Target(NamedTuple):
    """The distributions that a model is compared with, those of a teacher for the same N tokens."""
    hidden: torch.Tensor  # (N, teacher's hidden size), the state that predicts each token
    weight: torch.Tensor  # (V, teacher's hidden size), its output head
    divergence: Callable  # log-probs (n, V) of the model, of the teacher -> divergences (n,)


def token_divergences(hidden, weight, target, temperature, dtype):
    """Divergences (N,) of a model's distributions over the vocabulary from the Target's.

    hidden (N, hidden size) and the head `weight` (V, hidden size) are the model's; `dtype` is that of the
    matrix products. The logits of a chunk of tokens live only while the chunk is computed: backward
    computes them again. So memory does not grow with the number of tokens times V.
    """
    # It has no gradient, so that one cast serves all chunks. The model's own head is cast for each
    # chunk: the chunks' gradients are then summed up in fp32.
    teacher_W = target.weight.to(dtype)  # (V, teacher's hidden size)

    def of_chunk(h, teacher_h):
        log_p = logits_of(h, weight, temperature, dtype).log_softmax(-1)  # (n, V)
        teacher_log_p = logits_of(teacher_h, teacher_W, temperature, dtype).log_softmax(-1)  # (n, V)
        return target.divergence(log_p, teacher_log_p)  # (n,)

    chunk = tokens_per_chunk(len(weight))
    # Without any token there is still an empty chunk, so that every weight gets a gradient.
    divergences = [
        checkpoint(of_chunk, h, teacher_h, use_reentrant=False)
        for h, teacher_h in zip(hidden.split(chunk), target.hidden.split(chunk))]
    return torch.cat(divergences)


def logits_of(hidden, weight, temperature, dtype):
    """fp32 logits (n, V) at a temperature, of hidden states (n, hidden size). With gradients."""
    with torch.autocast(hidden.device.type, enabled=False):
        logits = hidden.to(dtype) @ weight.to(dtype).T
    return logits.float() / temperature


# --- Policy -------------------------------------------------------------------
class Policy(nn.Module):
    """The module that the scripts wrap in DDP or shard. Its forward returns log-probs.

    Gradients are averaged over the ranks for what runs inside its forward. So log-probs are computed
    in here, output head included.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, lengths, index, temperature=1.0, parents=None, target=None,
                only_hidden=False):
        """fp32 log-probs (N,) and entropies (N,) of chosen tokens of a packed row, with gradients.

        ids (T,)          tokens of the segments, end to end
        lengths, parents  as for Documents
        index (N,)        places in the row of the tokens to score, never a document's first
        target            a Target: then the divergences (N,) from it come third
        only_hidden       then the one result is the hidden state (N, hidden) that predicts each token

        A log-prob is that of ids[index] given the tokens before it in its document, at the
        `temperature` of sampling. An entropy is that of the same distribution, in nats.
        """
        documents = Documents(lengths, ids.device, parents)
        hidden = hidden_states(self.model, ids, documents)  # (T, hidden)
        # A token is predicted from the hidden state of the token before it.
        hidden = hidden[documents.previous[index]]  # (N, hidden)
        if only_hidden:
            return hidden
        weight = self.model.get_output_embeddings().weight  # (V, hidden)

        dtype = weight.dtype
        device = ids.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        scores = TokenLogprobs.apply(hidden, weight, ids[index], temperature, dtype)
        if target is None:
            return scores
        return *scores, token_divergences(hidden, weight, target, temperature, dtype)


def hidden_states(model, ids, documents):
    """Last hidden states (T, hidden) of a packed row: ids (T,), and the Documents in it."""
    output = model.base_model(
        input_ids=ids[None], position_ids=documents.position_ids[None], use_cache=False,
        documents=documents)
    return output.last_hidden_state[0]

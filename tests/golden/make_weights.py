# ruff: noqa
# fmt: off
"""Deterministic random weights, NumPy only.  make_tensor(name, shape, seed) is a pure function of its arguments:

    rng = np.random.default_rng(zlib.crc32(name.encode()) ^ seed)          # PCG64
    z   = rng.standard_normal(shape)  (float64)    u = rng.random(shape)  (float64)   -- only the one needed is drawn
    all arithmetic in float64, one final cast to float32.

Rules, first match wins (name is the full key as it stands in the PyTorch state dict):
  R0  *.num_batches_tracked                                  -> 0 (int64)
  R1  norm layers (see IS_BN):  weight = 0.5+u, running_var = 0.5+u, bias = 0.1*z, running_mean = 0.1*z
      except the LAST norm of a residual bottleneck (layerI.J.bn3 / resI.J.conv3.norm): weight = 0.3*(0.5+u)
  R2  *cls_bg_score.weight                                    -> zeros
  R3  *cls_score.weight | concept_emb | class_emb (2-D rows)  -> z           (rows are normalised by the model)
  R4  *objectness_logits.weight: zc*2/sqrt(fan_in); .bias: 0.1*z+0.5 ;   *anchor_deltas.weight: zc*0.2/sqrt(fan_in); .bias 0.02*z
  R5  *bbox_pred.weight: z*0.5/sqrt(fan_in)
  R6  *rpn_head.conv*.weight (4-D): zc*sqrt(2/fan_in)
  R7  fpn_lateral*/fpn_output*.weight (4-D): zc/sqrt(fan_in)
  R7b *stem.conv1.weight (Detectron2 7x7 stem, fed with 0..255 pixels minus mean): z*sqrt(2/fan_in)/64
  R8  any other 4-D weight: zc*sqrt(2/fan_in), but z (not centred) where shape[1] == 3 (image stems)
  R9  transformer.*: attn.in_proj_weight z*w^-.5 ; attn.out_proj.weight, mlp.c_proj.weight z*w^-.5*(2*L)^-.5 *3; mlp.c_fc.weight z*(2w)^-.5
      (w = 'width' = size of the residual stream = shape[1] for in_proj/out_proj/c_fc, shape[0] for c_proj; L := 12 always)
  R10 ln_1/ln_2/ln_final/ln_pre/ln_post/norm1/norm2: weight 1+0.1*z, bias 0.02*z; cls_token, pos_embed: 0.5*z
  R11 token_embedding.weight 0.5*z ; positional_embedding(text; shape[0]==77) 0.1*z ; text_projection z*shape[0]^-.5
  R12 attnpool.positional_embedding: z*shape[1]^-.5 ; attnpool.{q,k}_proj.weight: zc*1.5/sqrt(fan_in);
      attnpool.{v,c}_proj.weight: zc/sqrt(fan_in)
  R13 logit_scale: ln(1/0.07)
  R14 other 2-D weights z/sqrt(fan_in); anything 1-D: 0.02*z
fan_in = prod(shape[1:]);  zc = z minus its mean over axes 1.. (each output unit's weights sum to 0, which takes the
common positive mode of ReLU features out, so that different regions give clearly different embeddings).
"""
import re, zlib
import numpy as np

RES_LAST = re.compile(r"(layer\d+\.\d+\.bn3|res\d\.\d+\.conv3\.norm)\.weight$")
IS_BN = re.compile(r"(?:^|\.)(bn\d|downsample\.1|norm)\.(weight|bias|running_mean|running_var)$")
LN = re.compile(r"(?:^|\.)(ln_1|ln_2|ln_final|ln_pre|ln_post|norm1|norm2)\.(weight|bias)$")

def make_tensor(name, shape, seed=0):
    shape = tuple(int(s) for s in shape)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    rng = np.random.default_rng(zlib.crc32(name.encode()) ^ seed)
    fan = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    def z(): return rng.standard_normal(shape)
    def zc():
        a = rng.standard_normal(shape)
        return a - a.mean(axis=tuple(range(1, a.ndim)), keepdims=True)
    def u(): return rng.random(shape)
    m = IS_BN.search(name)
    if m:
        k = m.group(2)
        if k in ("weight", "running_var"):
            v = 0.5 + u()
            if RES_LAST.search(name): v = 0.3 * v
        else:
            v = 0.1 * z()
    elif name.endswith("cls_bg_score.weight"): v = np.zeros(shape)
    elif re.search(r"(cls_score\.weight|concept_emb|class_emb)$", name): v = z()
    elif name.endswith("objectness_logits.weight"): v = zc() * 2 / fan ** .5
    elif name.endswith("objectness_logits.bias"): v = 0.1 * z() + 0.5
    elif name.endswith("anchor_deltas.weight"): v = zc() * 0.2 / fan ** .5
    elif name.endswith("bbox_pred.weight"): v = z() * 0.5 / fan ** .5
    elif re.search(r"fpn_(lateral|output)\d\.weight$", name): v = zc() / fan ** .5
    elif name.endswith("stem.conv1.weight"): v = z() * (2.0 / fan) ** .5 / 64
    elif len(shape) == 4: v = (z() if shape[1] == 3 else zc()) * (2.0 / fan) ** .5
    elif name.endswith("attn.in_proj_weight"): v = z() * shape[1] ** -.5
    elif name.endswith("attn.out_proj.weight"): v = z() * shape[1] ** -.5 * 24 ** -.5 * 3
    elif name.endswith("mlp.c_proj.weight"): v = z() * shape[0] ** -.5 * 24 ** -.5 * 3
    elif name.endswith("mlp.c_fc.weight"): v = z() * (2 * shape[1]) ** -.5
    elif LN.search(name): v = 1 + 0.1 * z() if name.endswith("weight") else 0.02 * z()
    elif name.endswith(("cls_token", "pos_embed")): v = 0.5 * z()
    elif name.endswith("token_embedding.weight"): v = 0.5 * z()
    elif name.endswith("attnpool.positional_embedding"): v = z() * shape[1] ** -.5
    elif name.endswith("positional_embedding"): v = 0.1 * z()
    elif name.endswith("text_projection"): v = z() * shape[0] ** -.5
    elif re.search(r"attnpool\.[qk]_proj\.weight$", name): v = zc() * 1.5 / fan ** .5
    elif re.search(r"attnpool\.[vc]_proj\.weight$", name): v = zc() / fan ** .5
    elif name.endswith("logit_scale"): v = np.full(shape, np.log(1 / 0.07))
    elif len(shape) == 2: v = z() / fan ** .5
    else: v = 0.02 * z()
    return np.asarray(v, np.float64).astype(np.float32)

def make_from_shapes(shapes, seed=0):
    """shapes: dict name -> shape (the golden/shapes_<model>.json files)"""
    return {k: make_tensor(k, s, seed) for k, s in shapes.items()}

def make_state_dict(arch, seed=0, root=None):
    """arch: name of a golden/shapes_<arch>.json file written by the golden scripts."""
    import json, os
    root = root or os.path.dirname(os.path.abspath(__file__))
    return make_from_shapes(json.load(open(os.path.join(root, f"shapes_{arch}.json"))), seed)

"""Faults of every folder, chosen because each breaks a promise of the package; `put_faults.py` tries them.

A row is what is wrong then, the file, the code and what it becomes, and the tests of which one must fail.
"""

from __future__ import annotations

from named_faults import Fault

_ROWS = (
    # --- what lies in no folder -------------------------------------------------------------
    ("top-1 looks at the worst of five classes", "evaluation.py",
     "best[:, :1] == own", "best[:, -1:] == own", "test_evaluation.py"),
    ("images of a limited set are its first ones, of one class", "evaluation.py",
     "np.linspace(0, self.count - 1, limit)", "np.linspace(0, limit - 1, limit)", "test_evaluation.py"),
    ("a sum of bits counts every tensor once, not its weights", "constraints.py",
     "{i: float(sizes[i]) for i in found}", "{i: 1.0 for i in found}", "allocation/test_convex.py"),
    ("limits on sparsity limit density", "constraints.py",
     "low=1 - max, high=1 - min)", "low=min, high=max)", "allocation/test_convex.py"),
    ("the demo's accuracy is measured in training mode", "demo.py",
     "with evaluating(model):", "if model.train():", "test_demo.py"),
    ("predicted sizes are bits", "plan.py",
     "round(t.rate * t.size / 8) if", "round(t.rate * t.size) if", "test_plan.py"),
    # --- allocation -------------------------------------------------------------------------
    ("plain rounding is never tried", "allocation/curve.py",
     "THETAS = (0.5, 0.54,", "THETAS = (0.54, 0.54,", "allocation/test_curve.py"),
    ("the steps of the paper go by the square of what they should", "allocation/paper.py",
     "np.exp(-log_a / 2)", "np.exp(-log_a)", "allocation/test_rate_distortion.py"),
    ("the least error of the paper's split forgets sensitivities", "allocation/paper.py",
     "float((n * root_a**2) @ _quantized(step, beta, tau)[1]), beta", "float(n @ _quantized(step, beta, tau)[1]), beta",
     "allocation/test_rate_distortion.py"),
    ("sensitivities count the wrong way round", "allocation/rate_distortion.py",
     "c.rate_at_slope(x - la) for", "c.rate_at_slope(x + la) for", "allocation/test_rate_distortion.py"),
    # --- base -------------------------------------------------------------------------------
    ("a failed write leaves its temporary file", "base/atomic.py",
     "aside.unlink()", "pass", "base/test_atomic.py"),
    ("a link is replaced", "base/atomic.py",
     "follow=False", "follow=True", "base/test_atomic.py"),
    ("numbers are cut, not rounded", "base/rounding.py",
     "(1 << drop - 1 if drop else 0)", "0", "base/test_rounding.py"),
    ("a kilobyte has 1024 bytes", "base/sizes.py",
     '"k": 10**3', '"k": 2**10', "base/test_sizes.py"),
    # --- cli --------------------------------------------------------------------------------
    ("a later number of a pattern takes the place of the earlier", "cli/parsing.py",
     "before if isinstance(before, dict) else {}", "{}", "cli/test_parsing.py"),
    ("the output's name keeps its ending", "cli/parsing.py",
     "stem = stem.removesuffix(suffix)", "pass", "cli/test_cli.py"),
    ("the dense network is scored twice", "cli/measuring.py",
     'if which == "compressed":', 'if which == "dense":', "test_evaluation.py"),
    # --- coding -----------------------------------------------------------------------------
    ("the roots of frequencies are too large", "coding/tables.py",
     "np.rint(np.sqrt(counts / 2))", "np.rint(np.sqrt(counts))", "coding/test_entropy.py"),
    ("the mean of two roots is rounded down", "coding/tables.py",
     "(sum(both) + len(both) // 2)", "sum(both)", "file/test_golden.py"),
    ("the logarithms of large frequencies are a bit too small", "coding/tables.py",
     "values >> np.maximum(exponents - _MANTISSA, 0)", "values >> np.maximum(exponents - _MANTISSA, 1)", "coding/test_entropy.py"),
    # --- compression ------------------------------------------------------------------------
    ("the window of the budget accepts any smaller file", "compression/budget.py",
     "one.bytes >= self.window * self.target", "one.bytes >= 0", "compression/test_budget.py"),
    ("a probe that does worse is kept", "compression/compared.py",
     "if not with_probe > rounded:", "if True:", "compression/test_compared.py"),
    ("one-dimensional tensors are compressed", "compression/roles.py",
     "if len(spec.shape) < 2:", "if len(spec.shape) < 1:", "compression/test_roles.py test_api.py"),
    ("of a tensor before a BatchNorm the variances are forgotten", "compression/prior.py",
     "float(np.mean(1 / np.maximum(variances, least)))", "1.0", "compression/test_prior.py"),
    # --- export -----------------------------------------------------------------------------
    ("integer layouts may lose the last code", "export/compressed_tensors.py",
     "if largest < 1 << width - 1", "if largest <= 1 << width - 1", "export/test_export.py"),
    ("packed codes have another middle", "export/compressed_tensors.py",
     "astype(np.int32) + (1 << width - 1)", "astype(np.int32) + (1 << width - 1) - 1", "export/test_export.py"),
    ("tied tensors are written once", "export/dense.py",
     "for start in starts:", "for start in starts[:1]:", "export/test_dense.py"),
    # --- file -------------------------------------------------------------------------------
    ("a running mean is not made up for in the bias", "file/vectors.py",
     "(coarse_mean.codes * coarse_mean.step - mean) * slope", "0 * slope", "file/test_vectors.py"),
    ("eps is left out of the weights of a BatchNorm", "file/vectors.py",
     "(variances + norm.eps) / (var + norm.eps)", "variances / (var + norm.eps)", "file/test_vectors.py"),
    ("a checksum is one of fewer bits", "file/payload.py",
     "np.ascontiguousarray(self.read(), np.int16).data)", "np.ascontiguousarray(self.read(), np.int16).data) & 255",
     "file/test_golden.py"),
    # --- hub --------------------------------------------------------------------------------
    ("of several opq files in a folder any is taken", "hub/quantizer.py",
     "if beside - opened:", "if False:", "hub"),
    ("save_pretrained does not say that it writes dense weights", "hub/quantizer.py",
     '(file := getattr(self, "opq_file", None)) is not None', "(file := None) is not None", "hub"),
    ("a file of differences is taken for weights", "hub/decoded.py",
     "(base := self._reader.base) is not None", "(base := None) is not None", "hub export"),
    # --- methods ----------------------------------------------------------------------------
    ("a pruned weight comes back at once", "methods/pruning.py",
     "magnitude > 1.1 * t", "magnitude > 0.9 * t", "methods/test_olmp.py methods/test_methods.py"),
    ("LAMP's scores look at smaller weights", "methods/pruning.py",
     "ordered.flip(0).cumsum(0).flip(0)", "ordered.cumsum(0)", "methods/test_methods.py"),
    ("blocks cross rows", "methods/product.py",
     "if columns % size == 0)", "if size)", "methods/test_methods.py"),
    # --- models -----------------------------------------------------------------------------
    ("modules come back in inference mode", "models/observe.py",
     "module.training = mode", "module.training = False", "models probing/test_sensitivity.py test_evaluation.py"),
    ("hooks stay", "models/observe.py",
     "handle.remove()", "pass", "models probing/test_sensitivity.py"),
    ("hidden states count among the outputs", "models/outputs.py",
     "if not name.endswith(_INNER)", "if True", "models/test_outputs.py"),
    ("gradients of a probe stay", "models/record.py",
     "one.grad = grad", "pass", "models/test_record.py"),
    # --- probing ----------------------------------------------------------------------------
    ("means of a re-normalised BatchNorm move by the square of their unit", "probing/renorm.py",
     "(variance.double() / v.clamp(min=TINY)).sqrt()", "(variance.double() / v.clamp(min=TINY))",
     "probing/test_renorm.py"),
    ("re-normalisation is taken for dividing by the gain", "probing/renorm.py",
     "(variance.double() * gain)", "(variance.double() / gain)", "probing/test_renorm.py"),
    ("every sensitivity is taken at its root", "probing/sensitivity.py",
     "(felt.get(n) or middle) ** alpha for", "(felt.get(n) or middle) ** (alpha / 2) for",
     "probing/test_sensitivity.py"),
    ("noise of an image is white", "probing/images.py",
     "radius.pow(-exponent", "radius.pow(0 * exponent", "probing/test_images.py"),
    # --- quantizing -------------------------------------------------------------------------
    ("the dead zone has its edge on the other side", "quantizing/grid.py",
     "scaled >= plan.threshold / plan.step", "scaled > plan.threshold / plan.step", "quantizing/test_grid.py"),
    ("the damping of a moment is forgotten", "quantizing/moment.py",
     "reverse.diagonal(dim1=-2, dim2=-1).add_(damping)\n    lower:", "reverse.diagonal()\n    lower:",
     "quantizing/test_moment.py quantizing/test_feedback.py"),
    ("coordinates of least power are quantized first", "quantizing/moment.py",
     "argsort(descending=True, stable=True)", "argsort(descending=False, stable=True)",
     "quantizing/test_moment.py quantizing/test_feedback.py"),
    ("the trellis takes the dearer of two ways", "quantizing/loops.py",
     "new[j] = min(a, b)", "new[j] = max(a, b)", "quantizing/test_loops.py quantizing/test_trellis.py"),
    # --- report -----------------------------------------------------------------------------
    ("kept weights count as pruned in the paper's ratio", "report/accounting.py",
     "1 - self.kept / self.weights", "self.kept / self.weights", "report"),
    ("a group's errors forget sensitivities", "report/groups.py",
     "sizes * np.exp(log_a)", "sizes", "report"),
    ("the entropy of a tensor is in bits", "report/accounting.py",
     "return entropy(counts) / 8", "return entropy(counts)", "report"),
    # --- sources ----------------------------------------------------------------------------
    ("tied tensors of a model are stored twice", "sources/names.py",
     "like=holder.name if same else None", "like=None", "sources"),
    ("scales of a quantized checkpoint are taken for weights", "sources/quantized.py",
     "dataclasses.replace(s, exact=found[s.name]) if s.name in found and not s.exact else s for", "s for",
     "sources/test_quantized.py"),
    ("a side file of someone else is replaced", "sources/side_files.py",
     "if str(path) not in but and _is_taken(", "if False and _is_taken(", "sources/test_side_files.py"),
    # --- streaming --------------------------------------------------------------------------
    ("the sensitivities of tied names are not added", "streaming/first_pass.py",
     "sums.get(holder, 0.0) + square", "square", "streaming/test_block_probe.py streaming/test_run.py"),
    ("equal histograms of different tensors are not told apart", "streaming/measure.py",
     "stats.bins.tobytes() + stats.counts.tobytes()", "stats.bins.tobytes()", "streaming/test_run.py"),
    ("shards are twice as large", "streaming/shards.py",
     "filled + weight > shard_size", "filled + weight > 2 * shard_size", "streaming/test_run.py"),
    ("wrong weights pass where they are counted by patterns", "streaming/measure.py",
     "    if wrong:", "    if False:", "streaming/test_bad.py"),
    # --- training ---------------------------------------------------------------------------
    ("the teacher's temperature is forgotten in the loss", "training/objective.py",
     "t * t * functional.kl_div", "functional.kl_div", "training/test_objective.py"),
    ("running statistics are means of the last batches", "training/batchnorm.py",
     "norm.momentum = None", "norm.momentum = 0.1", "training"),
    ("the learning rate stays", "training/loop.py",
     'group["initial_lr"] * self._factor(count)', 'group["initial_lr"]', "training/test_finetuning.py"),
    ("a frozen BatchNorm is trained", "training/loop.py",
     'if self.how.bn == "freeze":', 'if self.how.bn == "never":', "training/test_finetuning.py"),
    # --- updates ----------------------------------------------------------------------------
    ("casts between float types are cut", "updates/patterns.py",
     "np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))", "np.uint32(0)", "updates/test_differences.py updates"),
    ("a base of the right size is not proved", "updates/applying.py",
     "(found := part.fingerprint().digest) != known.digest", "(found := part.fingerprint().digest) != found",
     "updates/test_wrong_updates.py updates/test_updates.py"),
    ("every row of a tensor is a block, however long", "updates/differences.py",
     "SHORTEST <= row <= LONGEST", "SHORTEST <= row", "updates"),
    # --- web --------------------------------------------------------------------------------
    ("a trellis in a browser takes other shifts", "web/opq.js",
     "((path & 1) * 0o12)", "((path & 1) * 0o10)", "web/test_decoder.py"),
    ("frequencies in a browser are shared out otherwise", "web/opq.js",
     "found[most] += missing", "found[0] += missing", "web/test_decoder.py"),
    ("codes beyond 16 bits are no fault in a browser", "web/opq.js",
     "path > 16383 || path < -16383", "path > 32767 || path < -32767", "web/test_hostile.py"),
)  # fmt: skip

FOLDERS = tuple(
    Fault(what=what, file=file, before=before, after=after, tests=tuple(tests.split()))
    for what, file, before, after, tests in _ROWS
)

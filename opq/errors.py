"""One tree of errors.

Every error states a fact, what was found, what is wanted and what to do about it. The function that notices the error
states the fact; a caller that knows the name of the tensor, the option or the file adds it.
"""

from __future__ import annotations


class OpqError(Exception):
    """Base of every error that this package raises on purpose.

    Args:
        fact: what is wrong, in one clause that names the tensor, option or file.
        got: what was found.
        wanted: what would have been right.
        remedy: what to do; defaults to the class's own `remedy`.
    """

    remedy: str = "See docs/errors.md."

    def __init__(self, fact: str, *, got: object = None, wanted: object = None, remedy: str | None = None):
        self.fact = fact
        self.got = None if got is None else str(got)
        self.wanted = None if wanted is None else str(wanted)
        self.remedy = remedy if remedy is not None else type(self).remedy
        super().__init__(fact)

    def __str__(self) -> str:
        found = [f"got {self.got}"] if self.got is not None else []
        found += [f"wanted {self.wanted}"] if self.wanted is not None else []
        head = f"{self.fact}: {', '.join(found)}" if found else self.fact
        return f"{head}. {self.remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.fact, self.got, self.wanted, self.remedy))


def _rebuild(kind: type[OpqError], fact: str, got: str | None, wanted: str | None, remedy: str) -> OpqError:
    return kind(fact, got=got, wanted=wanted, remedy=remedy)


# --- options ---------------------------------------------------------------------------------


class OptionError(OpqError):
    """An option, or a combination of options, that has no meaning."""

    remedy = "Correct the option and call again."


class BudgetError(OptionError):
    """No budget, or more than one of `bits=`, `ratio=` and `size=`."""

    remedy = "Give exactly one of bits=, ratio= and size=."


class InfeasibleError(OptionError):
    """The budget or the constraints cannot be met."""

    remedy = "Raise the budget or loosen the constraints."


class PatternError(OptionError):
    """A glob pattern that matches no tensor."""

    remedy = "Check the pattern against the names that `opq inspect` or the report prints."


class CentroidsError(OptionError):
    """k-means cannot make more centroids than there are blocks of weights."""

    remedy = "Ask for fewer centroids or smaller blocks."


class SearchError(OptionError):
    """A search whose accuracy constraint no candidate meets."""

    remedy = "Loosen the accuracy constraint, or search longer."


class DataError(OptionError):
    """A method needs data to train or search with, and there is none, or it does not fit the model."""

    remedy = "Pass data= as batches of (inputs, targets), a list or a DataLoader, or a function of the epoch."


class MissingExtraError(OpqError):
    """A feature needs a package that is not installed."""

    remedy = 'Install the extra: pip install "opq[...]".'


# --- sources ---------------------------------------------------------------------------------


class SourceError(OpqError):
    """The source of the weights cannot be read or understood."""

    remedy = "Pass a module, a state dict, a checkpoint path or a name such as hf:ORG/NAME."


class EmptyModelError(SourceError):
    """The source holds no floating-point tensor to compress."""

    remedy = "Pass a model with weights."


class NonFiniteError(SourceError):
    """A tensor holds NaN or infinity."""

    remedy = "Repair or drop the tensor; its name is above."


class CorruptSourceError(SourceError):
    """A checkpoint file that is truncated, damaged or contradicts its index."""

    remedy = "Fetch or copy the checkpoint again."


class MissingShardError(SourceError):
    """A checkpoint consists of several files, one of which is missing."""

    remedy = "Fetch or copy the missing file into the folder."


class UnsafeCheckpointError(SourceError):
    """A checkpoint that is a pickle of Python objects, which could run code when loaded."""

    remedy = "Save the state dict instead: torch.save(model.state_dict(), path), or safetensors."


# --- files -----------------------------------------------------------------------------------


class FileFormatError(OpqError):
    """Base: the file is not a readable `.opq.safetensors` file."""

    remedy = "Fetch or write the file again."


class MissingFileError(FileFormatError):
    """There is no such file, or it cannot be opened."""

    remedy = "Check the path and its permissions."


class ForeignFileError(FileFormatError):
    """The file is not an opq file."""

    remedy = "Pass a file written by opq (NAME.opq.safetensors)."


class NewerFormatError(FileFormatError):
    """The file was written in a format version that this package does not know."""

    remedy = "Upgrade: pip install -U opq."


class TruncatedFileError(FileFormatError):
    """The file is shorter than its header says."""


class CorruptFileError(FileFormatError):
    """A length, count, table or checksum in the file contradicts another."""


class FileTooLargeError(FileFormatError):
    """The file declares more decoded data than a file of its size may, unless the limit is raised."""

    remedy = "If you trust the file, raise the limit with max_expansion=."


class ClosedReaderError(OpqError):
    """A tensor was requested from a reader that is closed."""

    remedy = "Read inside the `with` block, or open the file again."


class MismatchError(OpqError):
    """The tensors of a file or plan do not match those of the model."""

    remedy = "Build the same model that was compressed; names and shapes are listed above."


class WrongBaseError(OpqError):
    """What a file was made against is another one, or is not given: the old version, or the base of a network."""

    remedy = "Pass the very version that it was made against; its size and its SHA-256 are above."


class WriteError(OpqError):
    """The output could not be written; what was there before is untouched."""

    remedy = "Check the path, its permissions and the free space, then run again."


class ExportError(OpqError):
    """The network, or its plan, cannot be expressed in the requested format."""

    remedy = "Export to another format: onnx, hf, or dense safetensors."


class ClassNamesError(OpqError):
    """The classes of an image set are not those of the model."""

    remedy = "Rename the folders, or pass the model's class names in order with classes=."


class BusyFolderError(WriteError):
    """Another process is writing into the folder."""

    remedy = "Wait for the other run, or choose another folder."


class OccupiedFolderError(WriteError):
    """The output folder holds another compression, finished or not, or a file that would have to be overwritten."""

    remedy = "Choose another folder, or delete what is in this one."


class RankError(OpqError):
    """One of the processes that work together failed or disappeared."""

    remedy = "See the message of that process; the same command continues where it stopped."


# --- numerics --------------------------------------------------------------------------------


class CertificateError(OpqError):
    """The solution does not satisfy its own optimality or budget certificate."""

    remedy = "This is a bug: please report it with the model's name and the options."


class OffCodebookError(OpqError):
    """A weight is not a value of the plan's codebook, or a pruned weight is not zero."""

    remedy = "Train through opq.attach, which keeps masks and steps fixed."


class AttachError(OpqError):
    """A model that must not have the compression module attached has it, or one that needs it does not."""

    remedy = "Attach once with opq.attach(model, plan); remove with opq.detach(model)."


class ProbeError(OpqError):
    """The model's forward could not be run on synthetic inputs."""

    remedy = "Pass example_inputs= or input_size=, or probe=False."


class TrainingError(OpqError):
    """Training cannot go on; the last good checkpoint is kept."""

    remedy = "Lower the learning rate or check the data, then resume."


class NativeError(OpqError):
    """The C++ kernel cannot be compiled, or it is requested where there is none."""

    remedy = "Install a C++ compiler and run `opq native`, or do without: torch's own operations give the same values."


# --- warnings --------------------------------------------------------------------------------


class OpqWarning(UserWarning):
    """Base of every warning that this package gives."""


class ProbeWarning(OpqWarning):
    """The model could not be probed; it is compressed by its weights alone, which is less accurate."""


class WeightsWarning(OpqWarning):
    """Numbers that are probably a mistake: NaN, infinity, weights that round to zero as float32; or a module holds more
    than tensors, which no file takes.
    """


class GridWarning(OpqWarning):
    """Weights that were compressed on a trellis are trained on plain grids of the same rates."""


class SearchWarning(OpqWarning):
    """A search ended at the edge of its search region, so that a better solution may lie outside."""

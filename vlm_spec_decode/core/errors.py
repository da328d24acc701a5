"""All exceptions of this package, in one tree.

::

    VsdError
    ├── UsageError                 what the caller gave cannot be used
    │   ├── ConfigError            unknown or invalid setting
    │   ├── SceneError             an invalid scene file or object name
    │   ├── InstructionError       empty or over-long instruction, or one that is no text
    │   ├── ImageError             no image in these bytes, or one too large
    │   ├── BagError               a bag that is not there or cannot be read
    │   ├── MissingExtra           a library that is optional and not installed
    │   ├── EngineBusy             a question beyond the answers that may be open at a time
    │   └── EngineClosed           a question after the engine's end
    ├── ModelError                 a checkpoint cannot be loaded or does not fit
    │   ├── ModelNotFound          no checkpoint where one is named; a ConfigError as well
    │   ├── VocabularyMismatch     draft and target do not share one tokenizer
    │   ├── OutOfMemory            an allocation failed; less at once may work
    │   ├── NotFinite              logits that are NaN or infinite: no token can be chosen from them
    │   │   └── TargetNotFinite    those of the target: the answer ends
    │   └── GrammarError           a grammar that does not compile, or tokens that are not of it
    ├── CloudError                 the verifier cannot be used
    │   ├── CloudUnreachable       no answer (not started, wrong key, link cut)
    │   ├── CloudRefused           the cloud refuses, with a reason
    │   │   └── CloudBusy          the cloud answers, and has no room for too long
    │   ├── CloudTimeout           an answer that ran past its deadline
    │   ├── ProtocolError          bytes that are not a message
    │   │   └── VersionMismatch    bytes of another version of the protocol
    │   └── ProtocolStateError     a call or a step that the client protocol's state does not allow
    ├── RobotError
    │   ├── RobotUnreachable       no service answers on this interface and domain
    │   ├── RobotRefused           the robot answers no, or does not do what it was asked
    │   ├── RobotStale             the state's stamp stands still
    │   ├── RobotHeld              another executor holds this robot
    │   └── DomainBusy             another robot or other settings hold the DDS domain
    ├── ActionError                text that is no action, or an action that may not be done
    │   ├── ActionParseError
    │   └── ActionRefused
    ├── MiddlewareError            ROS 2 or its middleware cannot be started on this computer
    ├── ProcessEnded               a process of a run that ended too early
    ├── InternalError              a fault of this program without a class of its own
    ├── OverBudget                 a draft step that `draft_budget` has no room for: it is left out
    └── Cancelled                  the caller cancelled; not a fault

Third-party errors are translated into these at the boundary where they arise.
"""


class VsdError(Exception):
    """Root of the tree; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(VsdError):
    """The caller's input cannot be used."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting is unknown or out of range."""


class SceneError(UsageError):
    """A scene file or object name is invalid; the message names the key."""


class InstructionError(UsageError):
    """The instruction is empty, too long or no text."""


class ImageError(UsageError):
    """The bytes hold no image that can be decoded within the limits."""


class BagError(UsageError):
    """A bag does not exist, cannot be read, or has nothing to ask about."""


class MissingExtra(UsageError):
    """An optional library is not installed; the message says how to install it."""


class EngineBusy(UsageError):
    """As many answers are open as the engine may have at a time, or another thread waits for this one."""


class EngineClosed(UsageError):
    """The engine has been closed."""


class ModelError(VsdError):
    """A checkpoint cannot be loaded or does not fit its use."""


class ModelNotFound(ModelError, ConfigError):
    """There is no checkpoint in the folder, on the Hub or in this package under the name that was given."""

    exit_code = 2


class VocabularyMismatch(ModelError):
    """Draft and target do not share one tokenizer, so token ids mean different things."""


class OutOfMemory(ModelError):
    """There was no memory for a batch; a smaller one may work."""


class EngineStopped(ModelError):
    """The process that runs the model has ended, or is being started again; answers under way are lost."""


class NotFinite(ModelError):
    """A model's logits are NaN or infinite; `model` is "draft" or "target" where it is known."""

    def __init__(self, what: str, model: str = "") -> None:
        whose = f"the {model} model's" if model else "a model's"
        super().__init__(
            f"{whose} logits {what}: numbers too large for float16 do that; "
            "dtype bfloat16 or float32 holds them"
        )
        self.what = what
        self.model = model


class TargetNotFinite(NotFinite):
    """The target's logits are NaN or infinite, so the answer cannot continue."""

    def __init__(self, what: str) -> None:
        super().__init__(what, "target")


class GrammarError(ModelError):
    """A grammar does not compile for a tokenizer, leaves no token legal, or meets one that is not."""


class CloudError(VsdError):
    """The verifier cannot be used. `answer` is the number of the answer that it ends; 0: all of them."""

    exit_code = 3
    answer = 0


class CloudUnreachable(CloudError):
    """The cloud does not answer: it is not started, the key is wrong, or the link is cut."""


class CloudRefused(CloudError):
    """The cloud refuses; `reason` is its stable name for the cause."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class CloudBusy(CloudRefused):
    """No cloud has had room for too long; `detail` names the resource, `retry_after_s` when to try again."""

    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__("busy", detail)
        self.retry_after_s = retry_after_s


class CloudTimeout(CloudError):
    """An answer ran past its deadline while the cloud was still connected."""


class ProtocolError(CloudError):
    """Bytes that are not a message of this protocol version."""


class VersionMismatch(ProtocolError):
    """Bytes of another version of the protocol."""

    def __init__(self, theirs: int, ours: int) -> None:
        super().__init__(f"protocol version {theirs}; this is version {ours}")


class ProtocolStateError(CloudError):
    """A call or a step that the state of the client protocol does not allow; a fault of this program."""


class RobotError(VsdError):
    """The robot cannot be used."""

    exit_code = 4


class RobotUnreachable(RobotError):
    """No service answers on this interface and domain."""


class RobotRefused(RobotError):
    """The robot did not carry out a call; `code` is its own return code, None where it has none."""

    def __init__(self, call: str, meaning: str, code: int | None = None) -> None:
        super().__init__(f"{call}: {meaning}" if code is None else f"{call} returned {code} ({meaning})")
        self.call = call
        self.code = code


class RobotStale(RobotError):
    """The stamp of the robot's state does not advance, whatever its calls return."""


class RobotHeld(RobotError):
    """Another executor holds this robot; the message says which process, where, and since when."""


class DomainBusy(RobotError):
    """The DDS domain is held by another robot, or by other settings of this process."""


class ActionError(VsdError):
    """Text that is no action, or an action that may not be done."""


class ActionParseError(ActionError):
    """Text that looks like an action and is not one of the language."""


class ActionRefused(ActionError):
    """The safety gate refuses; `reason` is a stable name such as `obstacle`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class MiddlewareError(VsdError):
    """ROS 2 or its middleware cannot be started on this computer; the message is that of ROS."""


class ProcessEnded(VsdError):
    """A process of a run ended too early; `exit_code` is that of the process where it has a meaning."""

    def __init__(self, name: str, code: int, last_line: str) -> None:
        super().__init__(f"{name} ended with exit code {code}: {last_line}")
        self.name = name
        self.exit_code = code if code in (UsageError.exit_code, CloudError.exit_code, 4) else 1


class InternalError(VsdError):
    """A fault of this program without an exception class of its own; the message has the traceback's path."""


class OverBudget(VsdError):
    """Drafting may take no more of the robot's computer now. The answer goes on without drafts."""


class Cancelled(VsdError):
    """The caller cancelled; not a fault."""

    exit_code = 130

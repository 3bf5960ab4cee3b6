"""Checkpoints of a training run: state and position, saved in the background, resumed bit for bit.

A checkpoint holds the state (an Orbax pytree) and a small JSON, the position: how many records and
steps are done, and the card of the run. The data pipeline is a function of the number of records
and a step's random key one of the step, so nothing else is needed to resume.

Orbax writes a step into a temporary directory and renames it when all is on disk. A process killed
in the middle leaves that directory behind; it is never listed and is removed at the next start.
"""

from collections.abc import Mapping
from pathlib import Path

import orbax.checkpoint as ocp

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.sharding.agreement import flat

_ASK = "continue it with its own settings, or start this run with another --workdir"


class TrainingCheckpoints:
    """The checkpoints of one run in one directory.

    Args:
        directory: made when missing.
        max_to_keep: older checkpoints beyond this number are deleted; None keeps all.
        card: JSON-able facts that must agree between the run that saved and the run that resumes
            (architecture, batch size, seed, ...). Not what may change, like the number of steps.
        added: what an older run is taken to have had, of facts that its version did not store yet.

    Raises:
        CheckpointMismatch: when the directory holds a run with another card, or the position of
            its newest checkpoint cannot be read.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        max_to_keep: int | None,
        card: dict,
        added: Mapping | None = None,
    ):
        self.directory = Path(directory).absolute()
        self._card, self._added = card, added or {}
        # Before the manager, which tidies the directory: a refused run leaves another's alone.
        self._require_same_card()
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=max_to_keep,
                create=True,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
            ),
            item_names=("state", "position"),
        )

    def latest(self) -> Path | None:
        """The newest finished checkpoint, or None."""
        self.wait()
        step = self._manager.latest_step()
        return None if step is None else self.directory / str(step)

    def save(self, step: int, state, *, records: int) -> None:
        """Copy the state to the host, then write it in the background.

        The next step may donate the state's buffers as soon as this returns: from an accelerator
        the copy is complete by then; on CPU Orbax reads the buffers in place and JAX, seeing that
        they are held, copies instead of overwriting. A step that is already saved is left alone.

        Args:
            step: updates done.
            state: pytree of arrays.
            records: records of the data consumed by these updates.
        """
        if step in self._manager.all_steps():
            return
        position = {"step": step, "records": records, "card": self._card}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position)
            ),
        )

    def restore_latest(self, abstract_state) -> tuple[object, dict] | None:
        """Read the newest checkpoint, however many devices and processes wrote it.

        Args:
            abstract_state: the state as ``jax.ShapeDtypeStruct`` leaves with their shardings
                (``jax.eval_shape`` of the initialisation); the restored arrays get these.

        Returns:
            (state, position) with position = {"step", "records", "card"}; None when there is none.

        Raises:
            CheckpointMismatch: when the stored tensors are not those of ``abstract_state``, or
                not all there.
        """
        self.wait()
        step = self._manager.latest_step()
        if step is None:
            return None
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract_state),
                    position=ocp.args.JsonRestore(),
                ),
            )
        # For tensors whose bytes are gone Orbax raises a bare Exception.
        except Exception as error:
            where = self.directory / str(step)
            if not isinstance(error, ValueError) or "NOT_FOUND" in str(error):
                raise CheckpointMismatch(
                    f"{where}: cannot be read as a whole: files are missing or damaged. Every "
                    "process that wrote it left its share (state/ocdbt.process_*): bring all of "
                    "them together, or delete this checkpoint to go on from the one before it. "
                    f"Orbax says: {str(error)[:300]}"
                ) from error
            raise CheckpointMismatch(
                f"{where}: its tensors are not those of this run; {_ASK}. Orbax says: {error}"
            ) from error
        return restored["state"], restored["position"]

    def wait(self) -> None:
        """Wait until every save is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then release the directory."""
        self.wait()
        self._manager.close()

    def _require_same_card(self) -> None:
        steps = ocp.utils.checkpoint_steps(self.directory) if self.directory.is_dir() else []
        if not steps:
            return
        where = self.directory / str(max(steps))
        try:
            position = ocp.JsonCheckpointHandler().restore(where / "position")
        except (OSError, ValueError) as error:
            raise CheckpointMismatch(
                f"{where}: its position cannot be read ({error}); delete this checkpoint to go on "
                "from the one before it, or start this run with another --workdir"
            ) from error
        stored = flat(_with_added(position["card"], self._added, self._card))
        ours = flat(self._card)
        differences = [
            f"{key}: there {stored.get(key, 'absent')!r}, here {ours.get(key, 'absent')!r}"
            for key in sorted(stored.keys() | ours.keys())
            if stored.get(key, "absent") != ours.get(key, "absent")
        ]
        if differences:
            raise CheckpointMismatch(
                f"{where} belongs to another run ({'; '.join(differences)}); {_ASK}"
            )


def _with_added(stored: dict, added: Mapping, ours: Mapping) -> dict:
    """The stored facts, and those of ``added`` that ours has and the stored ones lack."""
    inner = {
        key: _with_added(value, added[key], ours[key])
        for key, value in stored.items()
        if all(isinstance(x, dict) for x in (value, added.get(key), ours.get(key)))
    }
    return {**{key: added[key] for key in added if key in ours}, **stored, **inner}

"""Checkpoints of a training run: state and position, saved in the background, resumed bit for bit.

A checkpoint holds the state (an Orbax pytree) and the position (a small JSON): the number of
records and steps done, and the card of the run. The data pipeline is a function of the number of
records, and a step's random key of the step number, so resuming needs no more.

Orbax writes a step into a temporary directory and renames it when it is complete. A killed process
leaves that directory behind; it is never listed, and the next start removes it.
"""

from collections.abc import Mapping
from pathlib import Path

import orbax.checkpoint as ocp
from absl import logging

from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.sharding.consistency import flat

_ASK = "continue it with its own settings and data, or start this run with another --workdir"


class TrainingCheckpoints:
    """Checkpoints of one run in one directory.

    Args:
        directory: created if missing.
        max_to_keep: number of newest checkpoints to keep; None keeps all.
        card: JSON facts that must agree between the run that saved and the run that resumes
            (architecture, batch size, seed, ...). Excludes facts that may change, like the number
            of steps.
        added: assumed facts of older runs, which their version did not store yet.

    Raises:
        CheckpointMismatch: the directory holds a run with another card, or the position of its
            newest checkpoint cannot be read.
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
        # Before the manager, which cleans the directory: a refused run must not change another's.
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
        """Return the newest finished checkpoint, or None."""
        self.wait()
        step = self._manager.latest_step()
        return None if step is None else self.directory / str(step)

    def save(self, step: int, state, *, records: int) -> None:
        """Copy the state to the host, then write it in the background.

        The next step may donate the state's buffers as soon as this returns. From an accelerator
        the copy is complete by then. On CPU, Orbax reads the buffers in place and holds them, so
        JAX copies instead of overwriting. A step that is already saved is not saved again.

        Args:
            step: updates done.
            state: pytree of arrays.
            records: number of records consumed by these updates.
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
        """Read the newest checkpoint, written by any number of devices and processes.

        Args:
            abstract_state: the state as ``jax.ShapeDtypeStruct`` leaves with shardings
                (``jax.eval_shape`` of the initialisation), which the restored arrays get.

        Returns:
            (state, position) with position = {"step", "records", "card"}; None without checkpoint.

        Raises:
            CheckpointMismatch: the stored tensors differ from ``abstract_state`` or are
                incomplete.
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
        # Orbax raises a bare Exception for tensors with missing bytes.
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
        """Wait until every save is on disk; raise errors of the background."""
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
        recorded = flat(position["card"])
        stored = flat(_with_added(position["card"], self._added, self._card))
        for key in sorted(stored.keys() - recorded.keys()):
            logging.info(
                "%s: an older version wrote it without %s, taken as %r", where, key, stored[key]
            )
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
    """Return the stored facts, with missing ones of ours taken from ``added``."""
    inner = {
        key: _with_added(value, added[key], ours[key])
        for key, value in stored.items()
        if all(isinstance(x, dict) for x in (value, added.get(key), ours.get(key)))
    }
    return {**{key: added[key] for key in added if key in ours}, **stored, **inner}

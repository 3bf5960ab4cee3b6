"""Checkpoints of a training run: state and position, saved in the background, resumed bit for bit.

A checkpoint holds the state (an Orbax pytree) and the position (a small JSON): the number of
records and steps done, and the card of the run. The data pipeline is a function of the number of
records, and a step's random key of the step number, so resuming needs no more.

Orbax writes a step into a temporary directory and renames it when it is complete. A killed process
leaves that directory behind; it is never listed, and the next start removes it. Just before the
renaming, in the thread that writes, the first process adds ``digests.json`` of all files of the
state and the position. So a complete checkpoint has digests, except those of versions up to 0.2.0.

The next start compares the newest checkpoint with its digests. A damaged one is renamed to
``N.damaged`` and kept, and the run continues from the newest sound one.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from absl import logging

from regionclip_jax.artifacts.digests import find_damage, write_digests
from regionclip_jax.artifacts.model_card import CheckpointMismatch
from regionclip_jax.sharding.barriers import barrier
from regionclip_jax.sharding.consistency import flat
from regionclip_jax.sharding.global_arrays import gather_json

_ASK = "continue it with its own settings and data, or start this run with another --workdir"
_ITEMS = ("state", "position")


class TrainingCheckpoints:
    """Checkpoints of one run in one directory.

    Args:
        directory: created if missing.
        max_to_keep: number of newest checkpoints to keep; None keeps all.
        card: JSON facts that must agree between the run that saved and the run that resumes
            (architecture, batch size, seed, ...). Excludes facts that may change, like the number
            of steps.
        added: assumed facts of older runs, which their version did not store yet.

    Attributes:
        set_aside: a text for every damaged checkpoint that was found and renamed, newest first.

    Raises:
        CheckpointMismatch: the directory holds a run with another card, or all its checkpoints are
            damaged. Nothing is renamed then.
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
        self._before_commit: Callable[[], object] = lambda: None
        # Before the manager, which cleans the directory: a refused run must not change another's.
        newest, damage = self._newest_sound()
        if newest is not None:
            self._require_same_card(newest)
        self.set_aside = self._set_aside(damage, newest)
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=max_to_keep,
                create=True,
                cleanup_tmp_directories=True,
                single_host_load_and_broadcast=True,
                enable_async_checkpointing=True,
                # Orbax calls it between the last write and the renaming.
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
            item_names=_ITEMS,
        )

    def latest(self) -> Path | None:
        """Return the newest finished checkpoint, or None."""
        self.wait()
        step = self._manager.latest_step()
        return None if step is None else self.directory / str(step)

    def save(
        self,
        step: int,
        state,
        *,
        records: int,
        before_commit: Callable[[], object] = lambda: None,
    ) -> None:
        """Copy the state to the host, then write it in the background.

        The next step may donate the state's buffers as soon as this returns. From an accelerator
        the copy is complete by then. On CPU, Orbax reads the buffers in place and holds them, so
        JAX copies instead of overwriting. A step that is already saved is not saved again.

        Args:
            step: updates done.
            state: pytree of arrays.
            records: number of records consumed by these updates.
            before_commit: called in the first process, in the thread that writes, before the
                checkpoint is declared complete.
        """
        if step in self._manager.all_steps():
            return
        self.wait()  # as Orbax would, so that each save has its own ``before_commit``
        self._before_commit = before_commit
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
                    "them together, or rename this checkpoint to go on from the one before it. "
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

    def _seal(self) -> None:
        """Add the digests to the checkpoint that is being written."""
        self._before_commit()
        (folder,) = self.directory.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*")
        # Beside the items Orbax keeps times, which it changes when it renames the folder.
        files = [path for item in _ITEMS for path in (folder / item).rglob("*") if path.is_file()]
        write_digests(folder, files)

    def _newest_sound(self) -> tuple[Path | None, dict[Path, list[str]]]:
        """Return the newest sound checkpoint, and the damage of newer ones, the same everywhere.

        Raises:
            CheckpointMismatch: there are checkpoints, and all are damaged.
        """
        steps = ocp.utils.checkpoint_steps(self.directory) if self.directory.is_dir() else []
        (steps, *_) = gather_json([sorted(map(int, steps), reverse=True)])
        damage = {}
        for step in steps:
            where = self.directory / str(step)
            # The processes divide the files, and all of them join all findings.
            found = gather_json(_damage(where, (jax.process_index(), jax.process_count())))
            if not found:
                return where, damage
            damage[where] = found
        if damage:
            raise CheckpointMismatch(
                f"{self.directory}: no checkpoint of this run is sound ({_first(damage)}). Every "
                "process that wrote them left its share (state/ocdbt.process_*): bring all files "
                "together again, or start this run with another --workdir"
            )
        return None, damage

    def _set_aside(self, damage: Mapping[Path, list[str]], sound: Path | None) -> list[str]:
        """Rename the damaged checkpoints, which are newer than the sound one, and log each."""
        texts = []
        for where, found in damage.items():
            names = (where.with_name(f"{where.name}.damaged{n}") for n in ("", *range(2, 10**6)))
            (kept, *_) = gather_json([str(next(name for name in names if not name.exists()))])
            if jax.process_index() == 0:
                where.rename(kept)
            texts.append(
                f"{where} is damaged ({_first({where: found})}); it is kept as {kept}, and the run "
                f"continues from {sound}"
            )
            logging.error("%s", texts[-1])
        if damage:
            barrier("set damaged checkpoints aside")
        return texts

    def _require_same_card(self, where: Path) -> None:
        position = _read_position(where)
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


def _read_position(where: Path) -> dict:
    return ocp.JsonCheckpointHandler().restore(where / "position")


def _damage(where: Path, share: tuple[int, int]) -> list[str]:
    """Describe the damage of a checkpoint, in this process's share of its files."""
    found = find_damage(where, share=share)
    if found is not None:
        return found
    # An older version wrote it.
    logging.info("%s: has no digests of its files, so they are not checked", where)
    try:
        _read_position(where)["card"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        return [f"{where / 'position'}: cannot be read ({error!r})"]
    return []


def _first(damage: Mapping[Path, list[str]]) -> str:
    """Return the first text, and the number of others."""
    texts = [text for found in damage.values() for text in found]
    return texts[0] + (f", and {len(texts) - 1} more files" if texts[1:] else "")


def _with_added(stored: dict, added: Mapping, ours: Mapping) -> dict:
    """Return the stored facts, with missing ones of ours taken from ``added``."""
    inner = {
        key: _with_added(value, added[key], ours[key])
        for key, value in stored.items()
        if all(isinstance(x, dict) for x in (value, added.get(key), ours.get(key)))
    }
    return {**{key: added[key] for key in added if key in ours}, **stored, **inner}

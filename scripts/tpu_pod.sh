#!/usr/bin/env bash
# Run a job on all hosts of a TPU slice of Google Cloud.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: scripts/tpu_pod.sh COMMAND NAME [options]

  create NAME --type TYPE --version IMAGE [--spot] [--queued]
                     a slice, e.g. --type v5litepod-16 --version v2-alpha-tpuv5-lite;
                     one of that name that is ready is used again.
                     --queued waits in line for one (a queued resource)
  install NAME       the last commit and its environment (Python 3.11, the tested versions)
                     into ~/regionclip_jax of every host; again after every change
  run NAME -- FLAGS  starts python -m regionclip_jax.main FLAGS on every host, then shows host 0's log
  logs NAME          shows host 0's log until the job ends; Ctrl-C leaves the job running
  stop NAME          SIGTERM on every host: the job saves and ends; `run` continues it
  delete NAME        the slice, with everything on its disks

Options of all commands:
  --zone ZONE  --project PROJECT    else gcloud's own defaults
  --dry-run                         prints every command and runs none
  --help

Hosts share nothing: --workdir, data and models must lie in a folder that all of them mount at the
same path (NFS, Filestore, or a bucket with gcsfuse), not at a gs:// address, which is refused.
`install` copies the last commit only: no uncommitted change, no ignored file, no credential.
TEXT
}

fail() {
  echo "tpu_pod.sh: $1" >&2
  exit 1
}

# All commands with an effect use this function. The output of a dry run can be pasted into a shell.
act() {
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@" >&3
    echo >&3
  else
    "$@"
  fi
}

tpus() { # KIND VERB ARGUMENTS...
  act gcloud compute tpus "$1" "$2" "${@:3}" "${place[@]}"
}

on_hosts() { # all|0 COMMAND
  tpus tpu-vm ssh "$name" "--worker=$1" "--command=$2"
}

state_of() { # KIND FORMAT: empty when there is none
  tpus "$1" describe "$name" "--format=value($2)" 2>/dev/null || true
}

create() {
  [ -n "$type" ] && [ -n "$version" ] || fail "create needs --type and --version"
  local state
  state="$(state_of tpu-vm state)"
  case "$state" in
    READY)
      echo "$name is ready and used again"
      return
      ;;
    "" | CREATING) ;;
    *) fail "$name exists and is $state; scripts/tpu_pod.sh delete $name, then create it again" ;;
  esac
  if [ -z "$queued" ]; then
    [ -z "$state" ] || fail "$name is being created; try again in a minute"
    tpus tpu-vm create "$name" "--accelerator-type=$type" "--version=$version" "${spot[@]}"
    return
  fi
  if [ -z "$(state_of queued-resources state.state)" ]; then
    tpus queued-resources create "$name" "--node-id=$name" "--accelerator-type=$type" \
      "--runtime-version=$version" "${spot[@]}"
  fi
  while [ -z "$dry_run" ]; do
    state="$(state_of queued-resources state.state)"
    echo "queued resource $name: ${state:-unknown}"
    case "$state" in
      ACTIVE) return ;;
      FAILED | SUSPENDED) fail "$name is $state; scripts/tpu_pod.sh delete $name" ;;
    esac
    sleep "${TPU_POLL_SECONDS:-30}"
  done
}

install() {
  if [ -z "$dry_run" ] && [ -n "$(git status --porcelain)" ]; then
    echo "tpu_pod.sh: installs the last commit; changes that are not committed stay here" >&2
  fi
  local archive=regionclip_jax.tar.gz here=/tmp
  [ -n "$dry_run" ] || here="$(mktemp -d)"
  act git archive --format=tar.gz "--output=$here/$archive" HEAD
  tpus tpu-vm scp "$here/$archive" "$name:$archive" --worker=all
  [ -n "$dry_run" ] || rm -r "$here"
  # Remove files that the last commit lacks. Images have older Pythons; uv installs its own.
  on_hosts all "set -e; mkdir -p $folder; rm -rf $folder/regionclip_jax $folder/configs $folder/scripts; \
tar -xzf $archive -C $folder; cd $folder; \
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv; \
python3 -m uv venv --quiet --allow-existing --python 3.11 .venv; \
for lock in '-r locks/build.txt' '-r locks/tpu.txt' '--no-deps -e .'; do \
python3 -m uv pip install --quiet --no-build-isolation -p .venv \$lock; done"
}

start() {
  [ ${#job[@]} -gt 0 ] || fail "run needs the flags of the job: run $name -- --config=... --workdir=..."
  local command script
  # With status 75, `logs` distinguishes a stopped job from a finished one.
  command="$(printf '%q ' .venv/bin/python -m regionclip_jax.main --coordinator=auto \
    --preempted_status=75 "${job[@]}")"
  script="$command & echo \$! >run.pid; wait \$!; echo \$? >run.status"
  on_hosts all "cd $folder || exit 1; if $running; then echo 'a job is running here' >&2; exit 1; fi; \
rm -f run.status; nohup setsid bash -c $(printf '%q' "$script") >run.log 2>&1 </dev/null &"
  logs
}

logs() {
  on_hosts 0 "cd $folder || exit 1; sleep 1; tail -n 100 -F --pid=\$(cat run.pid) run.log; sleep 1; \
echo \"exit status \$(cat run.status) (0 done, 75 stopped: run it again to continue)\""
}

stop() {
  on_hosts all "cd $folder || exit 1; if $running; then kill -TERM \$(cat run.pid); \
tail -f --pid=\$(cat run.pid) /dev/null; else echo 'no job is running here'; fi"
}

delete() {
  if [ -n "$(state_of queued-resources state.state)" ]; then
    tpus queued-resources delete "$name" --force --quiet
  else
    tpus tpu-vm delete "$name" --quiet
  fi
}

folder="regionclip_jax"
# shellcheck disable=SC2016  # for the host's shell
running='kill -0 $(cat run.pid 2>/dev/null) 2>/dev/null'
dry_run="" type="" version="" queued="" name="" command=""
place=() spot=() job=()
exec 3>&1
while [ $# -gt 0 ]; do
  case "$1" in
    --help | -h)
      usage
      exit
      ;;
    --dry-run) dry_run=yes ;;
    --queued) queued=yes ;;
    --spot) spot=(--spot) ;;
    --zone | --project | --type | --version)
      [ $# -gt 1 ] || fail "$1 needs a value"
      case "$1" in
        --type) type="$2" ;;
        --version) version="$2" ;;
        *) place+=("$1=$2") ;;
      esac
      shift
      ;;
    --)
      shift
      job=("$@")
      break
      ;;
    -*) fail "unknown option $1 (--help)" ;;
    *)
      if [ -z "$command" ]; then
        command="$1"
      elif [ -z "$name" ]; then
        name="$1"
      else
        fail "unexpected argument $1 (flags of the job come after --)"
      fi
      ;;
  esac
  shift
done
case "$command" in
  create | install | logs | stop | delete | run) ;;
  *)
    usage >&2
    exit 2
    ;;
esac
[ -n "$name" ] || fail "$command needs the name of the slice"
[ "$command" = run ] || [ ${#job[@]} -eq 0 ] || fail "$command takes no flags of a job"
cd "$(dirname "$0")/.."
[ "$command" != run ] || command=start
"$command"

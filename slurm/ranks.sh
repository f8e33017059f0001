# shellcheck shell=bash disable=SC2034  # world_size, status and signal are for the scripts that source this
# What the batch scripts have in common: one Slurm task per rank. Sourced by them, on the job's first node.
#
#     start_ranks LOG_FOLDER ARGUMENT...     megacpt/train.py on every rank, in the background; its srun is $step
#     wait_for_ranks LOG_FOLDER              waits through signals; sets $status to the exit code of the run, and
#                                            $signal to USR1, TERM or ""

# Values from the submitting shell win. README.md has the ones that depend on the cluster's network.
# One meeting point for all ranks: the first node, at a port of this job's own below the ephemeral range.
if [[ -z "${MASTER_ADDR:-}" ]]; then read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST"); fi
MASTER_PORT="${MASTER_PORT:-$(( 20000 + SLURM_JOB_ID % 10000 ))}"
export MASTER_ADDR MASTER_PORT
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"                   # its errors are silent otherwise
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}"  # else a thread per core of the node, in every rank
export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True}"  # less memory lost between evaluations

# When the job has to have ended, so that the run can stop by itself in time. Older Slurms do not say it by themselves.
if [[ -z "${SLURM_JOB_END_TIME:-}" ]] && end=$(squeue --noheader --job "$SLURM_JOB_ID" --format %e 2>/dev/null); then
    SLURM_JOB_END_TIME=$(date --date "$end" +%s 2>/dev/null) || unset SLURM_JOB_END_TIME  # without a limit: Unknown
fi
[[ -z "${SLURM_JOB_END_TIME:-}" ]] || export SLURM_JOB_END_TIME

INTERRUPTED=75  # the exit code of a run that stopped early, with a checkpoint
world_size=$(( SLURM_JOB_NUM_NODES * SLURM_NTASKS_PER_NODE ))
signal=""

start_ranks() {
    local log_folder="$1"
    shift
    mkdir -p "$log_folder"
    rm -f "$log_folder/interrupted"
    # The shell of a task must outlive signals that its rank answers. --kill-on-bad-exit would kill ranks that are a
    # moment behind the first one that leaves with INTERRUPTED, so that code becomes a file.
    # shellcheck disable=SC2016  # the variables are those of each rank
    srun --kill-on-bad-exit=1 --gpu-bind=none --cpus-per-task="$SLURM_CPUS_PER_TASK" \
        --label --open-mode=append --output="$log_folder/%N.log" \
        bash -c '
            export RANK="$SLURM_PROCID" WORLD_SIZE="$SLURM_NTASKS"
            export LOCAL_RANK="$SLURM_LOCALID" LOCAL_WORLD_SIZE="$SLURM_NTASKS_PER_NODE"
            trap "" USR1 TERM
            log_folder="$1" interrupted="$2"
            shift 2
            if python megacpt/train.py "$@"; then exit 0; else status=$?; fi
            if (( status == interrupted )); then touch "$log_folder/interrupted"; exit 0; fi
            exit "$status"
        ' rank "$log_folder" "$INTERRUPTED" "$@" &
    step=$!
    trap 'stop_ranks USR1' USR1
    trap 'stop_ranks TERM' TERM
}

# USR1 comes some time before the time limit, TERM when the job is cancelled or preempted. Both reach the ranks as USR1:
# srun passes that on, but answers TERM by killing its tasks.
# shellcheck disable=SC2329  # called by the traps
stop_ranks() {
    signal="$1"
    echo "$(date -Is) $signal: asking the ranks to stop"
    kill -USR1 "$step" 2>/dev/null || true
}

# A signal interrupts `wait` before srun has ended.
wait_for_ranks() {
    local log_folder="$1" seen
    while true; do
        seen="$signal"
        if wait "$step"; then status=0; else status=$?; fi
        if [[ "$signal" == "$seen" ]]; then break; fi
    done
    if (( status == 0 )) && [[ -e "$log_folder/interrupted" ]]; then status=$INTERRUPTED; fi
}

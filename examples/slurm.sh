#!/bin/bash
# Train on several machines, and continue after a preemption, a time limit or a failed machine.
#SBATCH --job-name=atlasvi
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120  # two minutes before the time limit, to all processes: they write a checkpoint and end with 75

DATA=${DATA:-/data/atlas.store}
RUN=${RUN:-/runs/atlas}
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

RESUME=()
if [ -d "$RUN" ]; then RESUME=(--resume); fi

srun --kill-on-bad-exit=0 atlasvi launch --nproc "${SLURM_GPUS_ON_NODE:-8}" --nnodes "$SLURM_JOB_NUM_NODES" \
  --rendezvous "$HEAD:29400" --max-restarts 3 -- \
  train "$DATA" --out "$RUN" --batch-key donor --batch-size 32768 "${RESUME[@]}"
STATUS=$?

if [ "$STATUS" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$STATUS"

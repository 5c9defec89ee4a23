#!/bin/sh
# one_node_slurm.sh FOLDER PORT COMMAND...: run it on a Slurm cluster of this host alone, with `srun`.
#
# munged, slurmctld and slurmd are real; their configuration, key and state are in FOLDER, which is empty and of
# a short name; they listen at PORT and the next one. Everything ends with this process, which was started, by root, by
#   unshare --mount --pid --fork --kill-child --mount-proc
set -e
folder=$1 port=$2
shift 2
host=$(hostname)
chmod 755 "$folder"
head -c 1024 /dev/urandom > "$folder/munge.key"
chmod 400 "$folder/munge.key"
cat > "$folder/slurm.conf" << END
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES State=UP MaxTime=INFINITE
END
mkdir "$folder/state" "$folder/spool"
export SLURM_CONF="$folder/slurm.conf"
munged --foreground --socket="$folder/munge.socket" --key-file="$folder/munge.key" \
    --pid-file="$folder/munged.pid" --seed-file="$folder/munged.seed" \
    > "$folder/munged.log" 2>&1 &
until [ -S "$folder/munge.socket" ]; do sleep 0.05; done
slurmctld -D > /dev/null 2>&1 &
slurmd -D > /dev/null 2>&1 &
tries=0
until sinfo -h -o %t 2> /dev/null | grep -q '^idle$'; do
    sleep 0.1
    tries=$((tries + 1))
    if [ $tries = 300 ]; then
        echo "Slurm does not come up:" >&2
        tail -n 5 "$folder"/*.log >&2
        exit 1
    fi
done
"$@"

// What the guest does with its disks while they are merged: fio writes and verifies, again and again, in
// files of the root file system and on /dev/nbd0; and a pulse of small writes shows how long the longest of
// them had to wait.
//
//   root      /var/work/direct   O_DIRECT, 16 in flight   /var/work/buffered   page cache, fsync every 16
//   /dev/nbd0 [0, 12 MiB)        O_DIRECT, 16 in flight   [12, 24 MiB)         page cache, fsync every 16
//             [24, 32 MiB)       trims                    from 40 MiB on       left alone
//   pulse     /var/work/pulse, [32, 33 MiB) of nbd0       4 KiB, O_DIRECT, one at a time, 40 a second

import { MiB } from "../../src/base/units.ts";
import type { Machine } from "./machine.ts";

/** From here on nobody in the guest touches /dev/nbd0. */
export const UNTOUCHED_FROM = 40 * MiB;

/** Longest waits of a 4 KiB write that the guest has seen, in milliseconds. */
export interface Stalls {
  readonly root: number;
  readonly nbd: number;
}

const FIO_PATIENCE_MS = 180_000;

/** fio's jobs for one disk; the seed comes from the environment, another one for each run. */
function jobs(where: { direct: string; buffered: string; more?: readonly string[] }): string {
  return [
    "[global]",
    "bsrange=512-64k",
    "io_size=6m",
    "randseed=$" + "{SEED}",
    "verify=crc32c",
    "verify_fatal=1",
    "verify_dump=0",
    "[direct]",
    where.direct,
    "ioengine=libaio\niodepth=16\ndirect=1\nrw=randrw\nsize=12m",
    "[buffered]",
    where.buffered,
    "ioengine=psync\nfsync=16\nrw=randwrite\nsize=12m",
    ...(where.more ?? []),
    "",
  ].join("\n");
}

const ROOT_JOBS = jobs({ direct: "filename=/var/work/direct", buffered: "filename=/var/work/buffered" });
const NBD_JOBS = jobs({
  direct: "filename=/dev/nbd0\noffset=0",
  buffered: "filename=/dev/nbd0\noffset=12m",
});
const NBD_TRIMS =
  "[trims]\nfilename=/dev/nbd0\ndirect=1\nrw=randtrim\noffset=24m\nsize=8m\nio_size=4m\nbsrange=4k-256k\n";

const PULSE = [
  "[global]\nthread=1\nioengine=psync\ndirect=1\nrw=randwrite\nbs=4k\nsize=1m",
  "rate_iops=40\ntime_based=1\nruntime=3600",
  "[root]\nfilename=/var/work/pulse",
  "[nbd]\nfilename=/dev/nbd0\noffset=32m\n",
].join("\n");

/** One after the other until told to stop; the last seed and any failure stay behind. */
const LOOP = `
disk=$1
SEED=$2
while [ ! -e /run/stop ]; do
  export SEED=$((SEED + 1))
  if ! fio /var/work/$disk.fio >/run/$disk.out 2>&1 || grep -qE "verify:|error" /run/$disk.out; then
    cp /run/$disk.out /var/work/$disk.failed
    exit 1
  fi
  echo $SEED >/var/work/$disk.seed
  if [ $disk = nbd ] && ! fio /var/work/trims.fio >/run/trims.out 2>&1; then
    cp /run/trims.out /var/work/nbd.failed
  fi
  echo "$disk: run with seed $SEED was right" >>/run/done
done
`;

export class GuestWork {
  readonly #machine: Machine;

  constructor(machine: Machine) {
    this.#machine = machine;
  }

  /** Begins to write and verify; `seed` leads to the seeds of all runs. */
  async start(seed: number, disks: readonly ("root" | "nbd")[] = ["root", "nbd"]): Promise<void> {
    const files = { "root.fio": ROOT_JOBS, "nbd.fio": NBD_JOBS, "trims.fio": NBD_TRIMS, "pulse.fio": PULSE };
    await this.#machine.must("mkdir -p /var/work");
    for (const [name, text] of Object.entries({ ...files, "loop.sh": LOOP })) {
      await this.#machine.must(`cat >/var/work/${name} <<'END'\n${text}\nEND`);
    }
    await this.#machine.must(`
      rm -f /run/stop /run/done /var/work/*.failed
      for disk in ${disks.join(" ")}; do bash /var/work/loop.sh $disk ${seed * 1000} & done`);
  }

  /** Counts the pulse's waits from now on: both of its threads have written by the time this is done. */
  async startPulse(): Promise<void> {
    await this.#machine.must(`
      fio --minimal /var/work/pulse.fio >/run/pulse.out 2>&1 & p=$!
      echo $p >/run/pulse.pid
      writing() { awk '/^write_bytes/ && $2 > 0' $(ls -d /proc/$p/task/*/io | grep -v task/$p/) | wc -l; }
      until [ $(writing) -ge 2 ]; do [ -e /proc/$p ] || { cat /run/pulse.out; exit 1; }; sleep 0.1; done`);
  }

  /** The longest waits since startPulse. */
  async endPulse(): Promise<Stalls> {
    const pulse = await this.#machine.must(
      "p=$(cat /run/pulse.pid); kill -INT $p; wait $p; cat /run/pulse.out",
    );
    return { root: longestWrite(pulse, "root"), nbd: longestWrite(pulse, "nbd") };
  }

  /** How many runs of fio have verified all they wrote. */
  async runs(): Promise<number> {
    return Number(await this.#machine.must("cat /run/done 2>/dev/null | wc -l"));
  }

  /** Waits until there are so many of them, or something is wrong. */
  async untilRuns(wanted: number): Promise<void> {
    const failed = "ls /var/work/*.failed >/dev/null 2>&1";
    const count = "$(cat /run/done 2>/dev/null | wc -l)";
    await this.#machine.must(
      `until ${failed} || [ ${count} -ge ${wanted} ]; do sleep 0.3; done`,
      FIO_PATIENCE_MS,
    );
    await this.complain();
  }

  /** Lets the runs come to their end. @throws when any of them found anything wrong */
  async finish(): Promise<void> {
    await this.#machine.must("touch /run/stop; wait", FIO_PATIENCE_MS);
    await this.complain();
  }

  /** @throws with fio's or the kernel's words if anything has been wrong in the guest so far */
  async complain(): Promise<void> {
    const said = await this.#machine.must("cat /var/work/*.failed 2>/dev/null; true");
    if (said !== "") throw new Error(`fio in the guest says:\n${said}`);
    await noErrors(this.#machine);
  }

  /** Reads what the last runs wrote once more from the disks, perhaps in a guest that has booted since. */
  async verifyAgain(): Promise<void> {
    for (const disk of ["root", "nbd"]) {
      const fio = `export SEED=$(cat /var/work/${disk}.seed) && fio --verify_only=1 /var/work/${disk}.fio`;
      const said = await this.#machine.must(`(echo 3 >/proc/sys/vm/drop_caches; ${fio})`);
      if (/verify:|error=[^0]/.test(said)) throw new Error(`fio verifies again, and says:\n${said}`);
    }
  }
}

/** @throws with the kernel's messages when it has seen an error of a disk or of a file system */
export async function noErrors(machine: Machine): Promise<void> {
  const bad =
    "I/O error|EXT4-fs (error|warning)|XFS.*(error|corrupt)|Buffer I/O|JBD2:.*rror|hung task|timed out";
  const said = await machine.run(`dmesg -t | grep -iE "${bad}"`);
  if (said.status === 0) throw new Error(`the guest's kernel says:\n${said.output}`);
}

/**
 * Longest completion of a write in fio's terse output, version 3: milliseconds.
 * Fields of the write half begin at 46: total KiB, bandwidth, iops, runtime, then slat and clat, each as
 * min;max;mean;deviation (microseconds).
 */
function longestWrite(terse: string, job: string): number {
  const line = terse.split("\n").find((each) => each.split(";")[2] === job);
  const microseconds = Number(line?.split(";")[46 + 4 + 4 + 1]);
  if (!(microseconds > 0)) throw new Error(`no latency of '${job}' in what fio said:\n${terse}`);
  return microseconds / 1000;
}

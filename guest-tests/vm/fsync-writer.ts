// A writer in the guest that keeps its promises in view of the test: it says on the console which content it
// is about to give to which file, and, once fsync has answered for the file and for its folder, that it has.
//
//   WILL root 17 3 9e107d9d372bb6826bd81d3542a419d6      run 17 gives file 3 this content (md5)
//   DONE root 17 3 9e107d9d372bb6826bd81d3542a419d6      and it will survive anything
//   FAIL root                                            the guest was told of an error; the writer has ended
//
// A file is written under another name and renamed, so after a power cut it has the content of the last DONE,
// or that of the WILL after it, and nothing in between.

import type { Machine } from "./machine.ts";

const SCRIPT = `
tag=$1
folder=$2
RANDOM=$3
fail() { echo "FAIL $tag"; exit 1; }
mkdir -p $folder
for ((run = 1; ; run++)); do
  slot=$((RANDOM % 5))
  head -c $((RANDOM * 6 + 1)) /dev/urandom >/run/$tag.source || fail
  sum=$(md5sum </run/$tag.source) || fail
  text="$tag $run $slot \${sum%% *}"
  echo "WILL $text"
  cp /run/$tag.source $folder/new && sync $folder/new || fail
  mv $folder/new $folder/$slot && sync $folder || fail
  echo "DONE $text"
done
`;

export interface WriterPlan {
  readonly tag: string;
  /** A folder on the disk that is tried; nobody else may write there. */
  readonly folder: string;
  readonly seed: number;
}

/** Starts a writer in the background of the guest's shell. */
export async function startWriter(machine: Machine, { tag, folder, seed }: WriterPlan): Promise<void> {
  await machine.must(`cat >/run/writer.sh <<'END'\n${SCRIPT}\nEND`);
  await machine.must(`bash /run/writer.sh ${tag} ${folder} ${seed} 2>&1 &`);
}

/** Waits until one of the writers has kept so many promises. @throws when one of them has failed */
export async function untilPromise(machine: Machine, promises: number, timeoutMs: number): Promise<void> {
  const found = await machine.waitFor(new RegExp(`^DONE \\w+ ${promises} |^FAIL `, "m"), timeoutMs);
  if (found[0] === "FAIL ") throw new Error(`a write failed in the guest:\n${machine.tail()}`);
}

/** What is wrong with the files that a writer left behind, as sentences; none if it kept every promise. */
export async function brokenPromises(console: string, machine: Machine, plan: WriterPlan): Promise<string[]> {
  const found = await machine.must(`cd ${plan.folder} && md5sum [0-9] 2>/dev/null; true`);
  const broken: string[] = [];
  for (const [slot, allowed] of promisedContents(console, plan.tag)) {
    const sum = new RegExp(`^([0-9a-f]{32})  ${slot}$`, "m").exec(found)?.[1];
    if (allowed.has(sum ?? "")) continue;
    broken.push(
      `${plan.folder}/${slot} is ${sum ?? "not there"}; it must be one of ${[...allowed].join(", ")}`,
    );
  }
  return broken;
}

/** How many promises the writer that has kept the most has kept. */
export function countPromises(console: string): number {
  return [...console.matchAll(/^DONE \w+ (\d+) /gm)].reduce(
    (most, found) => Math.max(most, Number(found[1])),
    0,
  );
}

/** For each file its possible contents after a power cut; "" stands for no file. */
function promisedContents(console: string, tag: string): Map<string, Set<string>> {
  const contents = new Map<string, Set<string>>();
  const lines = console.matchAll(/^(WILL|DONE) (\w+) \d+ (\d) ([0-9a-f]{32})$/gm);
  for (const [, word, whose, slot, sum] of lines) {
    if (whose !== tag) continue;
    if (word === "DONE") contents.set(slot!, new Set([sum!]));
    else contents.set(slot!, (contents.get(slot!) ?? new Set([""])).add(sum!));
  }
  return contents;
}

// What happened to the files of a host, in one order for all of them, and what a power cut may leave of it.
//
//   1. A change reaches its file at its place in the log. A sync makes durable what reached its own file
//      before it began, and not before it has ended; other files it does not touch.
//   2. Of what is not durable, every sector has any of the contents that it had since: so changes are there
//      or not, torn, and in any order.
//   3. The file is at least as long as what is there of it, and at most as long as it ever was.
//   4. A kill loses nothing: then all is there.

import type { Prng } from "../../../base/prng.ts";
import { type FileContent, SECTOR, type SectorChange, type Sectors } from "./sectors.ts";

export type HostEvent =
  | { readonly kind: "create"; readonly path: string }
  | {
      readonly kind: "change";
      readonly path: string;
      /** For people: "write 4096+512". */
      readonly words: string;
      readonly sectors: readonly SectorChange[];
      /** Length of the file afterwards. */
      readonly size: number;
    }
  | { readonly kind: "sync begins" | "sync ends"; readonly path: string; readonly id: number }
  /** Of a broken rule: the last sync of the file never was. */
  | { readonly kind: "sync was not"; readonly path: string };

/** One file of a state; `stamp` names it among the states of a log, where nothing was left to chance. */
export interface FileState extends FileContent {
  readonly stamp: string | undefined;
}

export interface HostState {
  readonly files: Map<string, FileState>;
  /** How it was chosen, for people. */
  readonly words: string;
}

interface Version {
  readonly event: number;
  readonly content: Buffer | undefined;
  readonly end: number;
}

interface TrackedFile {
  durable: Sectors;
  durableSize: number;
  /** Changes of `durable`. */
  generation: number;
  pending: Map<number, Version[]>;
  sizes: { event: number; size: number }[];
  /** As it was before the last sync had ended. */
  before: Pick<TrackedFile, "durable" | "durableSize" | "pending" | "sizes"> | undefined;
}

/** What is chosen of the changes that are not durable. */
interface Choice {
  readonly words: string;
  /** Whether the change is there; for each sector anew where that is torn. */
  has(event: number): boolean;
  readonly sizeAtLeast: "kept" | "any" | "all";
}

/** Goes through a log from its beginning, and tells at any place what a power cut may leave there. */
export class LogReplay {
  readonly #events: readonly HostEvent[];
  readonly #files = new Map<string, TrackedFile>();
  readonly #syncBegan = new Map<number, number>();
  readonly #keepsBefore: boolean;
  #at = 0;

  constructor(start: ReadonlyMap<string, FileContent>, events: readonly HostEvent[]) {
    this.#events = events;
    this.#keepsBefore = events.some(({ kind }) => kind === "sync was not");
    for (const [path, { sectors, size }] of start) this.#add(path, new Map(sectors), size);
  }

  /** Events that have happened. */
  get at(): number {
    return this.#at;
  }

  advanceTo(at: number): void {
    while (this.#at < at) this.#apply(this.#events[this.#at]!, this.#at++);
  }

  /** Changes that are not durable here. */
  pendingEvents(): number[] {
    const events = new Set<number>();
    for (const { pending, sizes } of this.#files.values()) {
      for (const versions of pending.values()) for (const { event } of versions) events.add(event);
      for (const { event } of sizes) events.add(event);
    }
    return [...events].sort((a, b) => a - b);
  }

  /** Holds until the replay goes on: files that are settled share what it has. */
  state(choice: Choice, prng: Prng): HostState {
    const files = new Map<string, FileState>();
    for (const [path, file] of this.#files) files.set(path, chosenState(path, file, choice, prng));
    return { files, words: choice.words };
  }

  #add(path: string, durable: Sectors, durableSize: number): void {
    const pending = new Map<number, Version[]>();
    this.#files.set(path, { durable, durableSize, generation: 0, pending, sizes: [], before: undefined });
  }

  #apply(event: HostEvent, index: number): void {
    if (event.kind === "create") {
      this.#add(event.path, new Map(), 0);
      return;
    }
    const file = this.#files.get(event.path)!;
    switch (event.kind) {
      case "change":
        addVersions(file, event, index);
        break;
      case "sync begins":
        this.#syncBegan.set(event.id, index);
        break;
      case "sync ends":
        if (this.#keepsBefore) file.before = copyOf(file);
        makeDurable(file, this.#syncBegan.get(event.id)!);
        break;
      case "sync was not":
        undoSync(file);
    }
  }
}

function addVersions(
  file: TrackedFile,
  { sectors, size }: Extract<HostEvent, { kind: "change" }>,
  event: number,
): void {
  for (const { index, content, end } of sectors) {
    const versions = file.pending.get(index);
    if (versions === undefined) file.pending.set(index, [{ event, content, end }]);
    else versions.push({ event, content, end });
  }
  const known = file.sizes.at(-1)?.size ?? file.durableSize;
  if (size !== known) file.sizes.push({ event, size });
}

function makeDurable(file: TrackedFile, before: number): void {
  file.generation++;
  for (const [sector, versions] of file.pending) {
    const later = versions.findIndex(({ event }) => event >= before);
    const count = later < 0 ? versions.length : later;
    if (count === 0) continue;
    put(file.durable, sector, versions[count - 1]!.content);
    if (later < 0) file.pending.delete(sector);
    else versions.splice(0, count);
  }
  while (file.sizes.length > 0 && file.sizes[0]!.event < before) file.durableSize = file.sizes.shift()!.size;
}

function copyOf({ durable, durableSize, pending, sizes }: TrackedFile): NonNullable<TrackedFile["before"]> {
  const versions = [...pending].map(([sector, list]): [number, Version[]] => [sector, [...list]]);
  return { durable: new Map(durable), durableSize, pending: new Map(versions), sizes: [...sizes] };
}

/** What was pending before the last sync is so again; what came since comes after it. */
function undoSync(file: TrackedFile): void {
  const { before } = file;
  if (before === undefined) return;
  for (const [sector, versions] of file.pending) {
    const old = before.pending.get(sector) ?? [];
    const known = old.at(-1)?.event ?? -1;
    before.pending.set(sector, [...old, ...versions.filter(({ event }) => event > known)]);
  }
  const known = before.sizes.at(-1)?.event ?? -1;
  const sizes = [...before.sizes, ...file.sizes.filter(({ event }) => event > known)];
  Object.assign(file, before, { sizes, generation: file.generation + 1, before: undefined });
}

function chosenState(path: string, file: TrackedFile, choice: Choice, prng: Prng): FileState {
  const { durable, durableSize, generation, pending } = file;
  if (pending.size === 0 && file.sizes.length === 0) {
    return { sectors: durable, size: durableSize, stamp: `${path} ${generation}` };
  }
  const sectors = new Map(durable);
  let end = 0;
  for (const [sector, versions] of pending) {
    const version = versions.findLast(({ event }) => choice.has(event));
    if (version === undefined) continue;
    put(sectors, sector, version.content);
    end = Math.max(end, version.end);
  }
  const size = Math.max(end, chosenSize(file, choice, prng));
  for (const sector of sectors.keys()) if (sector * SECTOR >= size) sectors.delete(sector);
  return { sectors, size, stamp: undefined };
}

function chosenSize({ durableSize, sizes }: TrackedFile, { sizeAtLeast }: Choice, prng: Prng): number {
  if (sizeAtLeast === "all") return sizes.at(-1)?.size ?? durableSize;
  if (sizeAtLeast === "kept") return durableSize;
  return prng.pick([durableSize, ...sizes.map(({ size }) => size)]);
}

function put(sectors: Sectors, index: number, content: Buffer | undefined): void {
  if (content === undefined) sectors.delete(index);
  else sectors.set(index, content);
}

/** Ways in which a power cut is known to hurt, and chance. */
export function choose(pending: readonly number[], prng: Prng): Choice {
  if (pending.length === 0) return allOf("all");
  const one = prng.pick(pending);
  const share = prng.pick([0.1, 0.5, 0.9]);
  const words = (what: string) => `of ${pending.length} changes that were not durable: ${what}`;
  switch (prng.below(8)) {
    case 0:
      return { words: words("none"), has: () => false, sizeAtLeast: "kept" };
    case 1:
      return allOf(words("all"));
    case 2:
      return { words: words(`those up to ${one}`), has: (event) => event <= one, sizeAtLeast: "any" };
    case 3:
      return { words: words(`all but ${one}`), has: (event) => event !== one, sizeAtLeast: "any" };
    case 4:
      return { words: words(`only ${one}`), has: (event) => event === one, sizeAtLeast: "any" };
    case 5:
      return { words: words(`those from ${one} on`), has: (event) => event >= one, sizeAtLeast: "any" };
    case 6: {
      const kept = new Set(pending.filter(() => prng.chance(share)));
      return { words: words([...kept].join(" ")), has: (event) => kept.has(event), sizeAtLeast: "any" };
    }
    default:
      return {
        words: words(`torn, ${share} of the sectors`),
        has: () => prng.chance(share),
        sizeAtLeast: "any",
      };
  }
}

function allOf(words: string): Choice {
  return { words, has: () => true, sizeAtLeast: "all" };
}

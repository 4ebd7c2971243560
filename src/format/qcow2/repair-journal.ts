// What a repair overwrites is kept first. As long as nobody wrote to the image since, it can be undone.
//
//   head     | "STRATA-UNDO-1\n" 14 | zero 2 | length of the image 8 |
//   record   | offset 8 | bytes 4 | checksum 4 | what stood there |         one after the other
//   seal     | all ones 8 | 12, 4 | checksum 4 | length of the image 8 | checksum of what stands there now 4
//   |
//
//   1. A record is durable before the range that it keeps is overwritten.
//   2. Records are undone from the last to the first: of a range that was written twice the oldest counts.
//   3. A record that is cut or does not match its checksum ends the file: what it keeps was not overwritten.
//   4. What stood past the end of the image is not kept; undoing cuts the image to its old length.
//   5. Leaked clusters that go back to the host are not kept: a repair does so only where nothing but leaks
//      was found, and then nobody has named them.
//   6. A repair that came to its end seals what it left. Where the kept ranges or the length of the image are
//      others now, somebody wrote since, and to undo would destroy that: it is refused. Undoing begins with
//      breaking the seal, so that it can be done again after a crash in the middle.

import { crc32 } from "node:zlib";
import { readU64, writeU64 } from "../../base/bytes.ts";
import { BlockError } from "../../base/errors.ts";
import { MiB } from "../../base/units.ts";
import type { ImageFile } from "./image-file.ts";

const MAGIC = "STRATA-UNDO-1\n";
const HEAD_BYTES = 24;
const RECORD_HEAD_BYTES = 16;
/** Longer ranges are kept in several records. */
const RECORD_BYTES_MAX = MiB;
/** Instead of the upper half of an offset. */
const SEAL_MARK = 0xffff_ffff;
const SEAL_BYTES = 12;

/** An image file whose old content is kept before it is overwritten. */
export class JournaledFile implements ImageFile {
  readonly #file: ImageFile;
  readonly #open: () => Promise<ImageFile>;
  #journal: ImageFile | undefined;
  #end = 0;

  /** @param open makes the journal, empty; called before the first change only */
  constructor(file: ImageFile, open: () => Promise<ImageFile>) {
    this.#file = file;
    this.#open = open;
  }

  get size(): number {
    return this.#file.size;
  }

  /** Whether anything was changed. */
  get isUsed(): boolean {
    return this.#journal !== undefined;
  }

  read(offset: number, bytes: number, buffer: Buffer, at: number) {
    return this.#file.read(offset, bytes, buffer, at);
  }

  async write(offset: number, bytes: number, buffer: Buffer, at: number): Promise<void> {
    await this.#keep(offset, bytes);
    await this.#file.write(offset, bytes, buffer, at);
  }

  async writeZeroes(offset: number, bytes: number, flags: number): Promise<void> {
    await this.#keep(offset, bytes);
    await this.#file.writeZeroes(offset, bytes, flags);
  }

  discard(offset: number, bytes: number) {
    return this.#file.discard(offset, bytes);
  }

  flush() {
    return this.#file.flush();
  }

  async truncate(size: number): Promise<void> {
    await this.#keep(size, Math.max(0, this.size - size));
    await this.#file.truncate(size);
  }

  /** Keeps what the repair has left, so that undoing notices later writes. */
  async seal(): Promise<void> {
    const journal = this.#journal;
    if (journal === undefined) return;
    const { records } = await findRecords(journal);
    const seal = Buffer.alloc(RECORD_HEAD_BYTES + SEAL_BYTES);
    seal.fill(0xff, 0, 8);
    seal.writeUInt32BE(SEAL_BYTES, 8);
    writeU64(seal, this.size, RECORD_HEAD_BYTES);
    seal.writeUInt32BE(await checksumOfKept(this.#file, journal, records), RECORD_HEAD_BYTES + 8);
    seal.writeUInt32BE(checksum(seal), 12);
    await journal.write(this.#end, seal.length, seal, 0);
    await journal.flush();
  }

  async #keep(offset: number, bytes: number): Promise<void> {
    const journal = this.#journal ?? (await this.#begin());
    const end = Math.min(offset + bytes, this.size);
    for (let from = offset; from < end; from += RECORD_BYTES_MAX) {
      const count = Math.min(RECORD_BYTES_MAX, end - from);
      const record = Buffer.alloc(RECORD_HEAD_BYTES + count);
      await this.#file.read(from, count, record, RECORD_HEAD_BYTES);
      writeU64(record, from, 0);
      record.writeUInt32BE(count, 8);
      record.writeUInt32BE(checksum(record), 12);
      await journal.write(this.#end, record.length, record, 0);
      this.#end += record.length;
    }
    await journal.flush();
  }

  async #begin(): Promise<ImageFile> {
    const journal = await this.#open();
    this.#journal = journal;
    const head = Buffer.alloc(HEAD_BYTES);
    head.write(MAGIC, 0, "latin1");
    writeU64(head, this.size, 16);
    await journal.write(0, HEAD_BYTES, head, 0);
    this.#end = HEAD_BYTES;
    return journal;
  }
}

/** Of a record whose checksum field may hold anything. */
function checksum(record: Buffer): number {
  return crc32(record.subarray(RECORD_HEAD_BYTES), crc32(record.subarray(0, 12)));
}

/**
 * Puts back what a repair has overwritten. Settles to the number of bytes.
 * @param force also where somebody wrote to the image since, which is lost then
 * @throws BlockError IMAGE_FORMAT when `journal` is not such a file, EBUSY when somebody wrote; what the host
 * says
 */
export async function undoRepair(file: ImageFile, journal: ImageFile, force = false): Promise<number> {
  const head = Buffer.alloc(HEAD_BYTES);
  await journal.read(0, HEAD_BYTES, head, 0);
  if (head.toString("latin1", 0, MAGIC.length) !== MAGIC) {
    throw new BlockError("IMAGE_FORMAT", "it does not hold what a repair has overwritten");
  }
  const { records, sealAt } = await findRecords(journal);
  if (sealAt !== undefined) {
    if (!force) await refuseChanged(file, journal, records, sealAt);
    await journal.write(sealAt, RECORD_HEAD_BYTES, Buffer.alloc(RECORD_HEAD_BYTES), 0);
    await journal.flush();
  }
  let bytes = 0;
  for (const at of records.reverse()) {
    const record = await readRecord(journal, at);
    const count = record.length - RECORD_HEAD_BYTES;
    await file.write(readU64(record, 0), count, record, RECORD_HEAD_BYTES);
    bytes += count;
  }
  const size = readU64(head, 16);
  if (file.size > size) await file.truncate(size);
  await file.flush();
  return bytes;
}

async function refuseChanged(
  file: ImageFile,
  journal: ImageFile,
  records: readonly number[],
  sealAt: number,
): Promise<void> {
  const seal = await readRecord(journal, sealAt);
  const isSame =
    readU64(seal, RECORD_HEAD_BYTES) === file.size &&
    seal.readUInt32BE(RECORD_HEAD_BYTES + 8) === (await checksumOfKept(file, journal, records));
  if (isSame) return;
  throw new BlockError("EBUSY", "the image was written to since the repair, so nothing was undone");
}

/** Of what stands now where the records are from. */
async function checksumOfKept(
  file: ImageFile,
  journal: ImageFile,
  records: readonly number[],
): Promise<number> {
  let sum = 0;
  for (const at of records) {
    const record = await readRecord(journal, at);
    const content = Buffer.alloc(record.length - RECORD_HEAD_BYTES);
    await file.read(readU64(record, 0), content.length, content, 0);
    sum = crc32(content, sum);
  }
  return sum;
}

/** Where the records begin that are whole, and the seal behind them, if there is one. */
async function findRecords(journal: ImageFile): Promise<{ records: number[]; sealAt?: number }> {
  const records: number[] = [];
  const head = Buffer.alloc(RECORD_HEAD_BYTES);
  for (let at = HEAD_BYTES; at + RECORD_HEAD_BYTES <= journal.size; ) {
    await journal.read(at, RECORD_HEAD_BYTES, head, 0);
    const bytes = head.readUInt32BE(8);
    if (bytes === 0 || bytes > RECORD_BYTES_MAX || at + RECORD_HEAD_BYTES + bytes > journal.size) break;
    const record = await readRecord(journal, at);
    if (record.readUInt32BE(12) !== checksum(record)) break;
    if (record.readUInt32BE(0) === SEAL_MARK) return { records, sealAt: at };
    records.push(at);
    at += record.length;
  }
  return { records };
}

async function readRecord(journal: ImageFile, at: number): Promise<Buffer> {
  const head = Buffer.alloc(RECORD_HEAD_BYTES);
  await journal.read(at, RECORD_HEAD_BYTES, head, 0);
  const record = Buffer.alloc(RECORD_HEAD_BYTES + head.readUInt32BE(8));
  await journal.read(at, record.length, record, 0);
  return record;
}

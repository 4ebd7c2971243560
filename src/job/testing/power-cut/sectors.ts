// What a file holds, by sectors of 512 bytes: the unit that a power cut writes as a whole or not at all.
// Sectors are never changed once they are there, so that any number of states of a file share them.

export const SECTOR = 512;

/** Sectors by index; one that is missing reads as zeros. */
export type Sectors = Map<number, Buffer>;

export interface FileContent {
  readonly sectors: Sectors;
  readonly size: number;
}

/** New content of one sector; undefined: zeros. */
export interface SectorChange {
  readonly index: number;
  readonly content: Buffer | undefined;
  /** Length that the file has at least when this is there. */
  readonly end: number;
}

/** A file's bytes as sectors; those of zeros are left out. */
export function contentOf(bytes: Buffer): FileContent {
  const sectors: Sectors = new Map();
  const padded = Buffer.alloc(Math.ceil(bytes.length / SECTOR) * SECTOR);
  bytes.copy(padded);
  for (let at = 0; at < padded.length; at += SECTOR) {
    const sector = padded.subarray(at, at + SECTOR);
    if (!sector.equals(ZEROS)) sectors.set(at / SECTOR, sector);
  }
  return { sectors, size: bytes.length };
}

/** The file's bytes. */
export function bytesOf(content: FileContent): Buffer {
  const bytes = Buffer.alloc(content.size);
  readSectors(content, 0, content.size, bytes, 0);
  return bytes;
}

/** Fills `buffer[at .. at+bytes)`; zeros past the end. */
export function readSectors(
  { sectors, size }: FileContent,
  offset: number,
  bytes: number,
  buffer: Buffer,
  at: number,
): void {
  const end = Math.max(offset, Math.min(offset + bytes, size));
  buffer.fill(0, at, at + bytes);
  for (let pos = offset; pos < end; ) {
    const index = Math.floor(pos / SECTOR);
    const within = pos - index * SECTOR;
    const length = Math.min(SECTOR - within, end - pos);
    sectors.get(index)?.copy(buffer, at + pos - offset, within, within + length);
    pos += length;
  }
}

/** What a write of `content` (undefined: zeros) at `offset` makes of the sectors that it touches. */
export function sectorChanges(
  old: FileContent,
  offset: number,
  bytes: number,
  content: Buffer | undefined,
): SectorChange[] {
  const changes: SectorChange[] = [];
  for (let pos = offset; pos < offset + bytes; ) {
    const index = Math.floor(pos / SECTOR);
    const within = pos - index * SECTOR;
    const length = Math.min(SECTOR - within, offset + bytes - pos);
    const piece = content?.subarray(pos - offset, pos - offset + length);
    changes.push({
      index,
      content: changed(old.sectors.get(index), within, length, piece),
      end: pos + length,
    });
    pos += length;
  }
  return changes;
}

function changed(old: Buffer | undefined, within: number, length: number, piece: Buffer | undefined) {
  if (length === SECTOR) return piece;
  if (old === undefined && piece === undefined) return undefined;
  const sector = Buffer.alloc(SECTOR);
  old?.copy(sector);
  if (piece === undefined) sector.fill(0, within, within + length);
  else piece.copy(sector, within);
  return sector;
}

const ZEROS = Buffer.alloc(SECTOR);

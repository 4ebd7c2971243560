// Writes a cpio archive of the form that Linux takes as its first file system ("newc", see
// Documentation/driver-api/early-userspace/buffer-format.rst of Linux).
//
//   entry:  "070701" | 13 numbers of 8 hex digits | name, NUL | padding to 4 | content | padding to 4
//
// It is not compressed: a guest without KVM reads memory faster than it unpacks.

export const DIRECTORY = 0o040755;
export const PROGRAM = 0o100755;
export const SYMLINK = 0o120777;
export const CHARACTER_DEVICE = 0o020600;

export class CpioWriter {
  readonly #parts: Buffer[] = [];
  readonly #seen = new Set<string>();
  #nextInode = 1;

  /** Whether something of this name is in the archive. */
  has(name: string): boolean {
    return this.#seen.has(relative(name));
  }

  /** An entry with the directories above it; one that is there already stays as it is. */
  add(
    name: string,
    mode: number,
    content: Buffer = Buffer.alloc(0),
    device: [number, number] = [0, 0],
  ): void {
    const entry = relative(name);
    if (this.#seen.has(entry)) return;
    const slash = entry.lastIndexOf("/");
    if (slash > 0) this.add(entry.slice(0, slash), DIRECTORY);
    this.#seen.add(entry);
    this.#append(entry, mode, content, device);
  }

  end(): Buffer {
    this.#append("TRAILER!!!", 0, Buffer.alloc(0), [0, 0]);
    return Buffer.concat(this.#parts);
  }

  #append(name: string, mode: number, content: Buffer, device: [number, number]): void {
    const links = mode === DIRECTORY ? 2 : 1;
    const fields = [
      this.#nextInode++,
      mode,
      0,
      0,
      links,
      0,
      content.length,
      0,
      0,
      ...device,
      name.length + 1,
      0,
    ];
    const numbers = fields.map((field) => field.toString(16).padStart(8, "0")).join("");
    const header = Buffer.from(`070701${numbers}${name}\0`, "latin1");
    this.#parts.push(padded(header), padded(content));
  }
}

function relative(name: string): string {
  return name.replace(/^\/+/, "");
}

function padded(bytes: Buffer): Buffer {
  const rest = bytes.length % 4;
  return rest === 0 ? bytes : Buffer.concat([bytes, Buffer.alloc(4 - rest)]);
}

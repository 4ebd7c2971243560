// io_uring through koffi: a ring that reads and writes files, and an eventfd that says when something is
// done.
//
//   we --entries--> submission queue --io_uring_enter--> kernel --> completion queue --> we
//                                                             \--> eventfd --> event loop
//
//   io_uring_params  0 sq_entries | 4 cq_entries | 8 flags | 12 sq_thread_cpu | 16 sq_thread_idle |
//                    20 features | 24 wq_fd | 28 reserved | 40 sq_off | 80 cq_off              all u32
//     sq_off   0 head | 4 tail | 8 ring_mask | 12 ring_entries | 16 flags | 20 dropped | 24 array
//     cq_off   0 head | 4 tail | 8 ring_mask | 12 ring_entries | 16 overflow | 20 cqes
//   submission  0 opcode u8 | 1 flags u8 | 2 ioprio u16 | 4 fd i32 | 8 offset u64 | 16 address u64 |
//               24 length u32 | 28 rw_flags u32 | 32 user_data u64 | 40 not used                    64 bytes
//   completion  0 user_data u64 | 8 result i32 | 12 flags u32                                       16 bytes
//
//   1. Addresses come from buffer-address.ts, which checks that a range is inside its buffer. The kernel
//      works there until the completion was taken: so long the caller keeps buffer and descriptor.
//   2. Not more than `places` are under way, and the completion queue has twice as many: it never overflows.
//   3. Each side writes its own end of a queue: we the tail of submissions and the head of completions. What
//      an entry holds is written before the tail is stored, and read after the tail was loaded: Atomics on an
//      Int32Array over memory that is not shared among threads of ours are real atomic operations all the
//      same, sequentially consistent, which is more than the protocol asks for.
//   4. The kernel takes submissions in io_uring_enter only (no polling thread), so those that it has left
//      behind can be taken back.
//   5. Counters of the queues run through 2**32 as signed 32-bit integers.

import { closeSync } from "node:fs";
import { assert } from "../base/assert.ts";
import { KiB } from "../base/units.ts";
import { BufferAddresses } from "./buffer-address.ts";
import { EventWatch, type EventWatchHandlers } from "./event-watch.ts";
import { setOffset } from "./file-offset.ts";
import { Errno, errnoText } from "./host-error.ts";
import type { ForeignFunction, Koffi } from "./load-koffi.ts";

/** What RingOperations needs of a ring. A tag is an integer of the caller's, 0 or more. */
export interface Ring {
  /** How many may be under way, from being prepared to being taken. */
  readonly places: number;
  /** Entries that were prepared and that the kernel has not taken. */
  readonly prepared: number;
  /** The next entry reads a file as pread does. */
  prepareRead(tag: number, fd: number, offset: number, bytes: number, buffer: Buffer, at: number): void;
  /** The next entry writes a file as pwrite does; much of it in a thread of the kernel's in any case. */
  prepareWrite(tag: number, fd: number, offset: number, bytes: number, buffer: Buffer, at: number): void;
  /** The next entry does nothing but come back. */
  prepareNothing(tag: number): void;
  /** Hands over what is prepared: how many the kernel has taken, oldest first, or -errno. */
  submit(): number;
  /** Takes back what is prepared. */
  withdraw(each: (tag: number) => void): void;
  /** Takes what is done: the tag, and bytes or -errno. */
  take(each: (tag: number, result: number) => void): void;
  /** Stops the thread until something is done, or for a reason of the kernel's. */
  wait(): void;
  /** Keeps the process alive until `release`. */
  hold(): void;
  release(): void;
  /** Nothing may be under way. */
  close(): void;
}

// linux/io_uring.h; system calls have these numbers on all architectures of load-koffi.ts.
const SYS_IO_URING_SETUP = 425;
const SYS_IO_URING_ENTER = 426;
const SYS_IO_URING_REGISTER = 427;
const IORING_SETUP_COOP_TASKRUN = 0x100;
const IORING_FEAT_SINGLE_MMAP = 1;
const IORING_FEAT_NODROP = 2;
/** Linux 5.12: workers belong to the process, with its rights and limits. */
const IORING_FEAT_NATIVE_WORKERS = 0x200;
const FEATURES = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_NATIVE_WORKERS;
const IORING_OFF_SQ_RING = 0;
const IORING_OFF_SQES = 0x1000_0000;
const IORING_ENTER_GETEVENTS = 1;
const IORING_REGISTER_EVENTFD = 4;
const IORING_REGISTER_IOWQ_MAX_WORKERS = 19;
const IORING_OP_NOP = 0;
const IORING_OP_READ = 22;
const IORING_OP_WRITE = 23;
const IOSQE_ASYNC = 0x10;
// sys/mman.h
const PROT_READ_WRITE = 3;
const MAP_SHARED_POPULATE = 0x8001;

const PARAMS_WORDS = 30;
const ENTRY_WORDS = 16;
const COMPLETION_WORDS = 4;
/** A larger write keeps its thread too long to be done at once. */
const COPIED_AT_ONCE_MAX = 256 * KiB;
/** The kernel moves no more in one operation (MAX_RW_COUNT). */
const TRANSFER_MAX = 0x7fff_f000;

interface Calls {
  readonly koffi: Koffi;
  readonly setup: ForeignFunction;
  readonly enter: ForeignFunction;
  readonly register: ForeignFunction;
  readonly mmap: ForeignFunction;
}

/** A ring of `places` (a power of two) that calls `handlers` when something is done, or why there is none. */
export function openRing(koffi: Koffi, places: number, handlers: EventWatchHandlers): Ring | string {
  let fd = -1;
  try {
    const calls = loadCalls(koffi);
    const params = new Uint32Array(new ArrayBuffer(PARAMS_WORDS * 4));
    fd = setUp(calls, places, params);
    if (fd < 0) return `io_uring_setup: ${errnoText(-fd)}`;
    if ((params[5]! & FEATURES) === FEATURES) return new KernelRing(calls, fd, params, handlers);
    closeSync(fd);
    return "that of this kernel is too old";
  } catch (error) {
    if (fd >= 0) closeSync(fd);
    return error instanceof Error ? error.message.split("\n")[0]! : String(error);
  }
}

function loadCalls(koffi: Koffi): Calls {
  const library = koffi.load(null);
  return {
    koffi,
    setup: library.func("syscall", "long", ["long", "uint", "uintptr"]),
    enter: library.func("syscall", "long", ["long", "uint", "uint", "uint", "uint", "uintptr", "size_t"]),
    register: library.func("syscall", "long", ["long", "uint", "uint", "uintptr", "uint"]),
    mmap: library.func("mmap", "int64", ["uintptr", "size_t", "int", "int", "int", "int64"]),
  };
}

/** The ring's descriptor (the kernel makes it close-on-exec), or -errno. */
function setUp({ koffi, setup }: Calls, places: number, params: Uint32Array): number {
  // The kernel finishes reads on our thread. With the flag (Linux 5.19) it does not interrupt what runs there
  // for that, but waits for the next call of the system or the end of a wait.
  for (const flags of [IORING_SETUP_COOP_TASKRUN, 0]) {
    params.fill(0);
    params[2] = flags;
    const fd = setup(SYS_IO_URING_SETUP, places, Number(koffi.address(params)));
    if (fd >= 0) return fd;
    const errno = koffi.errno();
    if (errno !== Errno.EINVAL) return -errno;
  }
  return -Errno.EINVAL;
}

class KernelRing implements Ring {
  readonly places: number;
  readonly #koffi: Koffi;
  readonly #enter: ForeignFunction;
  readonly #addresses: BufferAddresses;
  readonly #fd: number;
  readonly #watch: EventWatch;
  /** Both queues; the places below are words of it. */
  readonly #words: Int32Array;
  readonly #entries: Uint32Array;
  readonly #submissionHead: number;
  readonly #submissionTail: number;
  readonly #submissionMask: number;
  readonly #completionHead: number;
  readonly #completionTail: number;
  readonly #completionMask: number;
  readonly #completions: number;

  /** @throws Error */
  constructor(calls: Calls, fd: number, params: Uint32Array, handlers: EventWatchHandlers) {
    this.#koffi = calls.koffi;
    this.#enter = calls.enter;
    this.#addresses = new BufferAddresses(calls.koffi);
    this.#fd = fd;
    const [entries, completions] = [params[0]!, params[1]!];
    const [submissionAt, completionAt] = [params.subarray(10, 20), params.subarray(20, 30)];
    this.places = entries;
    const bytes = Math.max(
      submissionAt[6]! + entries * 4,
      completionAt[5]! + completions * COMPLETION_WORDS * 4,
    );
    this.#words = new Int32Array(mapped(calls, fd, IORING_OFF_SQ_RING, bytes));
    this.#entries = new Uint32Array(mapped(calls, fd, IORING_OFF_SQES, entries * ENTRY_WORDS * 4));
    this.#submissionHead = submissionAt[0]! / 4;
    this.#submissionTail = submissionAt[1]! / 4;
    this.#submissionMask = entries - 1;
    this.#completionHead = completionAt[0]! / 4;
    this.#completionTail = completionAt[1]! / 4;
    this.#completionMask = completions - 1;
    this.#completions = completionAt[5]! / 4;
    // The queue holds numbers of entries. Ours stand in their order, always.
    for (let i = 0; i < entries; i++) this.#words[submissionAt[6]! / 4 + i] = i;
    allowWorkers(calls, fd, entries);
    this.#watch = EventWatch.open(calls.koffi, handlers);
    const event = new Uint32Array([this.#watch.fd]);
    const address = Number(calls.koffi.address(event));
    if (calls.register(SYS_IO_URING_REGISTER, fd, IORING_REGISTER_EVENTFD, address, 1) < 0) {
      const errno = calls.koffi.errno();
      this.#watch.close();
      throw new Error(`io_uring_register: ${errnoText(errno)}`);
    }
  }

  get prepared(): number {
    return (this.#words[this.#submissionTail]! - Atomics.load(this.#words, this.#submissionHead)) | 0;
  }

  prepareRead(tag: number, fd: number, offset: number, bytes: number, buffer: Buffer, at: number): void {
    this.#prepareTransfer(IORING_OP_READ, tag, fd, offset, bytes, buffer, at);
  }

  prepareWrite(tag: number, fd: number, offset: number, bytes: number, buffer: Buffer, at: number): void {
    // XFS and Btrfs copy into the page cache at once, on our thread, unless the flag forbids it.
    const flags = bytes > COPIED_AT_ONCE_MAX ? IOSQE_ASYNC : 0;
    this.#prepareTransfer(IORING_OP_WRITE | (flags << 8), tag, fd, offset, bytes, buffer, at);
  }

  prepareNothing(tag: number): void {
    this.#nextEntry(tag, IORING_OP_NOP);
    this.#push();
  }

  submit(): number {
    const result = this.#enter(SYS_IO_URING_ENTER, this.#fd, this.prepared, 0, 0, 0, 0);
    return result < 0 ? -this.#koffi.errno() : result;
  }

  withdraw(each: (tag: number) => void): void {
    const words = this.#words;
    const head = Atomics.load(words, this.#submissionHead);
    const tail = words[this.#submissionTail]!;
    Atomics.store(words, this.#submissionTail, head);
    for (let at = head; at !== tail; at = (at + 1) | 0) {
      each(this.#entries[(at & this.#submissionMask) * ENTRY_WORDS + 8]!);
    }
  }

  take(each: (tag: number, result: number) => void): void {
    const words = this.#words;
    const tail = Atomics.load(words, this.#completionTail);
    for (let head = words[this.#completionHead]!; head !== tail; ) {
      const word = this.#completions + (head & this.#completionMask) * COMPLETION_WORDS;
      const [tag, result] = [words[word]!, words[word + 2]!];
      head = (head + 1) | 0;
      Atomics.store(words, this.#completionHead, head);
      each(tag, result);
    }
  }

  wait(): void {
    this.#enter(SYS_IO_URING_ENTER, this.#fd, 0, 1, IORING_ENTER_GETEVENTS, 0, 0);
  }

  hold(): void {
    this.#watch.hold();
  }

  release(): void {
    this.#watch.release();
  }

  close(): void {
    this.#watch.close();
    closeSync(this.#fd);
  }

  #prepareTransfer(
    operation: number,
    tag: number,
    fd: number,
    offset: number,
    bytes: number,
    buffer: Buffer,
    at: number,
  ): void {
    const address = this.#addresses.of(buffer, at, bytes);
    const word = this.#nextEntry(tag, operation);
    const entries = this.#entries;
    entries[word + 1] = fd;
    setOffset(entries, word + 2, offset);
    setOffset(entries, word + 4, address);
    entries[word + 6] = Math.min(bytes, TRANSFER_MAX);
    this.#push();
  }

  /** @param operation opcode, and flags in the second byte */
  #nextEntry(tag: number, operation: number): number {
    assert(this.prepared < this.places, "more in the ring than it has places");
    const word = (this.#words[this.#submissionTail]! & this.#submissionMask) * ENTRY_WORDS;
    this.#entries.fill(0, word, word + ENTRY_WORDS);
    this.#entries[word] = operation;
    this.#entries[word + 8] = tag;
    return word;
  }

  #push(): void {
    const tail = this.#words[this.#submissionTail]!;
    Atomics.store(this.#words, this.#submissionTail, (tail + 1) | 0);
  }
}

/**
 * Lets every place have a thread of the kernel's. It makes one where those that it has wait for a device, by
 * itself four for each processor at the most: a device that never answers would stop the writes of all
 * others. Kernels before 5.15 have no such call, and keep to their number.
 */
function allowWorkers({ koffi, register }: Calls, fd: number, places: number): void {
  // Those that write files; those that may wait without end (0: as they are).
  const workers = new Uint32Array([places, 0]);
  register(SYS_IO_URING_REGISTER, fd, IORING_REGISTER_IOWQ_MAX_WORKERS, Number(koffi.address(workers)), 2);
}

function mapped({ koffi, mmap }: Calls, fd: number, offset: number, bytes: number): ArrayBuffer {
  const address = mmap(0, bytes, PROT_READ_WRITE, MAP_SHARED_POPULATE, fd, offset);
  if (address < 0) throw new Error(`mmap of a ring: ${errnoText(koffi.errno())}`);
  return koffi.view(address, bytes);
}

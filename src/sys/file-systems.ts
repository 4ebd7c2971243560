// The file systems of Linux that it matters to know, by statfs(2)'s magic number.

/** Where a file lies: statfs(2)'s magic number, and stat(2)'s device. */
export interface FileSystem {
  readonly type: number;
  readonly device: number;
}

/** linux/magic.h, and what file systems outside of it call their own. */
export const FileSystemType = {
  UNKNOWN: 0,
  TMPFS: 0x0102_1994,
  RAMFS: 0x8584_58f6,
  EXT: 0xef53,
  XFS: 0x5846_5342,
  BTRFS: 0x9123_683e,
  F2FS: 0xf2f5_2010,
  BCACHEFS: 0xca45_1a4e,
  ZFS: 0x2fc1_2fc1,
  OVERLAYFS: 0x794c_7630,
} as const;

const { TMPFS, RAMFS, EXT, XFS, BTRFS, F2FS, BCACHEFS, ZFS, OVERLAYFS } = FileSystemType;

const IN_MEMORY: readonly number[] = [TMPFS, RAMFS];
const WITH_CACHED_WRITES: readonly number[] = [
  ...IN_MEMORY,
  ...[EXT, XFS, BTRFS, F2FS, BCACHEFS, ZFS, OVERLAYFS],
];

/** Nothing is below it that a flush could reach. */
export function isInMemory(type: number): boolean {
  return IN_MEMORY.includes(type);
}

/**
 * Whether a small write is a copy into this host's memory. Elsewhere (FUSE, network file systems, those that
 * nobody knows) it may wait for another process or another machine, for ever if that is stuck.
 */
export function cachesWrites(type: number): boolean {
  return WITH_CACHED_WRITES.includes(type);
}

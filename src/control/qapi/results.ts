// What queries return. Only what this program fills in stands here.

import { detectZeroes } from "./block.ts";
import { exportType } from "./export.ts";
import { ioStatus, jobStatus, jobType } from "./job.ts";
import { any, array, bool, int, type QapiType, str, struct } from "./types.ts";

const imageInfo: QapiType = struct("ImageInfo", "An image as it describes itself; sizes in bytes.", {
  filename: str,
  format: str,
  "virtual-size": int,
  "?actual-size": int,
  "?dirty-flag": bool,
  "?cluster-size": int,
  "?compressed": bool,
  "?backing-filename": str,
  "?full-backing-filename": str,
  "?backing-filename-format": str,
  "?snapshots": array(any),
  "?backing-image": () => imageInfo,
  "?format-specific": any,
});

const throttleMembers = {
  bps: int,
  bps_rd: int,
  bps_wr: int,
  iops: int,
  iops_rd: int,
  iops_wr: int,
} as const;

export const blockDeviceInfo = struct("BlockDeviceInfo", "A node and the image behind it.", {
  file: str,
  "?node-name": str,
  ro: bool,
  drv: str,
  "?backing_file": str,
  backing_file_depth: int,
  active: bool,
  encrypted: bool,
  detect_zeroes: detectZeroes,
  ...throttleMembers,
  image: imageInfo,
  cache: struct("BlockdevCacheInfo", "", { writeback: bool, direct: bool, "no-flush": bool }),
  write_threshold: int,
});

export const blockExportInfo = struct("BlockExportInfo", "An export.", {
  id: str,
  type: exportType,
  "node-name": str,
  "shutting-down": bool,
});

export const jobInfo = struct("JobInfo", "A job; progress in bytes.", {
  id: str,
  type: jobType,
  status: jobStatus,
  "current-progress": int,
  "total-progress": int,
  "?error": str,
});

export const blockJobInfo = struct("BlockJobInfo", "A block job; `device` is its id, lengths are bytes.", {
  type: jobType,
  device: str,
  len: int,
  offset: int,
  busy: bool,
  paused: bool,
  speed: int,
  "io-status": ioStatus,
  ready: bool,
  status: jobStatus,
  "auto-finalize": bool,
  "auto-dismiss": bool,
  "?error": str,
});

export const chardevInfo = struct("ChardevInfo", "A character device.", {
  label: str,
  filename: str,
  "frontend-open": bool,
});

export const versionInfo = struct(
  "VersionInfo",
  "The release of the reference that this follows, and ours.",
  {
    qemu: struct("VersionTriple", "", { major: int, minor: int, micro: int }),
    package: str,
  },
);

export const commandInfo = struct("CommandInfo", "A command by name.", { name: str });

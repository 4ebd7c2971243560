/** The version of this program; a test compares it with package.json. */
export const VERSION = "0.1.0";

/** The release of the reference whose QMP this is: clients look at it to know what they can use. */
export const QEMU_VERSION = { micro: 2, minor: 0, major: 10 } as const;

/** `version` of QMP's greeting and of query-version. */
export const VERSION_INFO = { qemu: QEMU_VERSION, package: `strata-storage ${VERSION}` } as const;

import { deviceIndexes, deviceState, type NbdHost } from "../../sys/nbd-device.ts";
import type { ControlEnvironment } from "../control-directory.ts";
import { type AttachRecord, removeRecord, writeRecord } from "./attach-record.ts";
import { stopDaemon } from "./background-daemon.ts";

/**
 * Ends the daemon that attach started for a device that is free now, and forgets it. Where another device
 * shows the same disk (read-only), that one inherits the daemon. True when the daemon has ended.
 */
export async function releaseDaemon(
  host: NbdHost,
  environment: ControlEnvironment,
  { index, record }: { readonly index: number; readonly record: AttachRecord },
): Promise<boolean> {
  const heir = deviceIndexes(host).find((other) => {
    const state = deviceState(host, other);
    return other !== index && state?.connected === true && state.backend === record.uri;
  });
  if (heir !== undefined) writeRecord(environment, heir, record);
  else await stopDaemon(record);
  removeRecord(environment, index);
  return heir === undefined;
}

import { BlockError } from "../base/errors.ts";
import type { Infer } from "./qapi/types.ts";
import { array, enumeration, struct } from "./qapi/types.ts";
import { visit } from "./qapi/visitor.ts";
import type { Request } from "./qmp-request.ts";

export const qmpCapabilitiesData = struct("QmpCapabilitiesArguments", "", {
  "?enable": array(enumeration("QMPCapability", ["oob"])),
});

/**
 * Ends the negotiation. @throws BlockError in QEMU's words for anything else, and for capabilities that we
 * lack
 */
export function qmpCapabilities(request: Request): void {
  if (request.execute !== "qmp_capabilities") {
    throw new BlockError("COMMAND_NOT_FOUND", "Expecting capabilities negotiation with 'qmp_capabilities'");
  }
  const args: Infer<typeof qmpCapabilitiesData> = visit(qmpCapabilitiesData, request.arguments);
  const [lacking] = args.enable ?? [];
  if (lacking !== undefined) {
    throw new BlockError("EINVAL", `Capability '${lacking}' is not offered by this monitor`);
  }
}

import { expect, it } from "vitest";
import { ExtentKind, ExtentList } from "../block/extent.ts";
import { mapEntry, mapJson, mapText } from "./image-map.ts";

const list = new ExtentList(0);
list.push(65536, ExtentKind.DATA, 393216, false, 1);
list.push(65536, ExtentKind.ZERO, -1, false, 0);
list.push(65536, ExtentKind.UNALLOCATED, -1, false, 1);
list.push(65536, ExtentKind.DATA, -1, true, 0);
const entries = list.extents.map(mapEntry);

it("has the members and the layout of qemu-img map --output json", () => {
  expect(mapJson(entries)).toBe(
    '[{ "start": 0, "length": 65536, "depth": 1, "present": true, "zero": false, "data": true, "compressed": false, ' +
      '"offset": 393216},\n' +
      '{ "start": 65536, "length": 65536, "depth": 0, "present": true, "zero": true, "data": false, "compressed": false},\n' +
      '{ "start": 131072, "length": 65536, "depth": 1, "present": false, "zero": true, "data": false, ' +
      '"compressed": false},\n' +
      '{ "start": 196608, "length": 65536, "depth": 0, "present": true, "zero": false, "data": true, ' +
      '"compressed": true}]\n',
  );
});

it("lists the data for people", () => {
  expect(mapText(entries, ["top.qcow2", "base.qcow2"])).toBe(
    "Offset          Length          Mapped to       File\n" +
      "0               0x10000         0x60000         base.qcow2\n" +
      "0x30000         0x10000         compressed      top.qcow2\n",
  );
});

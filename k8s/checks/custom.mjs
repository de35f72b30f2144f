// Checks the custom resources of rendered files: custom.mjs TOOLS FILE...
// Values by the validators that @kubernetes-models made from the CRDs. Those let unknown keys pass, so the objects are also
// written as TypeScript, whose compiler refuses them.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [tools, ...files] = process.argv.slice(2);
const require = createRequire(join(tools, "package.json"));
const { parseAllDocuments } = require("yaml");
const packages = {
  "keda.sh": "@kubernetes-models/keda",
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
  "cert-manager.io": "@kubernetes-models/cert-manager",
};

const problems = [];
const seen = new Set();
const imports = new Set();
const names = [];
const objects = [];
for (const file of files) {
  for (const document of parseAllDocuments(readFileSync(file, "utf8"))) {
    const object = document.toJS();
    const model = object && packages[object.apiVersion.split("/")[0]];
    if (!model) continue;
    const path = `${model}/${object.apiVersion}/${object.kind}`;
    const module = await import(pathToFileURL(join(tools, "node_modules", `${path}.js`)));
    try {
      new module[object.kind](object).validate();
    } catch (error) {
      problems.push(`${file}: ${object.kind} ${object.metadata.name}: ${error.message}`);
    }
    const text = JSON.stringify(object);
    if (seen.has(text)) continue;
    seen.add(text);
    imports.add(`import { I${object.kind} } from "${path}";`);
    names.push(`${file}: ${object.kind} ${object.metadata.name}`);
    objects.push(`export const o${objects.length}: I${object.kind} = ${text};`);
  }
}
if (objects.length === 0) problems.push("no custom resource was found");

const folder = mkdtempSync(join(tmpdir(), "inferq-custom-"));
try {
  symlinkSync(join(tools, "node_modules"), join(folder, "node_modules"));
  writeFileSync(join(folder, "package.json"), '{"type": "module"}');
  writeFileSync(join(folder, "objects.ts"), [...imports, ...objects].join("\n"));
  const options = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "objects.ts"];
  execFileSync(process.execPath, [join(tools, "node_modules/typescript/bin/tsc"), ...options], { cwd: folder, encoding: "utf8" });
} catch (error) {
  const name = (_, line) => names[line - 1 - imports.size];
  problems.push((error.stdout ?? error.message).replace(/objects\.ts\((\d+),\d+\)/g, name));
} finally {
  rmSync(folder, { recursive: true });
}
problems.forEach((problem) => console.log(problem));
process.exit(problems.length === 0 ? 0 : 1);

// Reads an AsyncAPI document with the parser of its makers: node asyncapi.mjs FILE. Fails with what is wrong, warnings as well.
import { readFile } from "node:fs/promises"
import { resolve } from "node:path"
import { Parser } from "@asyncapi/parser"

const file = resolve(process.argv[2])
const { document, diagnostics } = await new Parser().parse(await readFile(file, "utf8"), { source: file })
// What is less than a warning is a hint, such as that there is a newer version of AsyncAPI.
const problems = diagnostics.filter(({ severity }) => severity < 2)
for (const { code, message, path } of problems) console.error(`${code} ${path.join(".")}: ${message}`)
if (problems.length > 0 || !document) process.exit(1)
console.log(document.allMessages().length, "messages")

// Continue's command line, with its providers for Ollama and for OpenAI's API: `continue_cli.mjs URL`.
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const url = process.argv[2];
const program = join(dirname(fileURLToPath(import.meta.url)), "node_modules", ".bin", "cn");
const folder = mkdtempSync(join(tmpdir(), "continue-"));
const answers = {};
try {
  for (const [provider, base] of [["ollama", `${url}/`], ["openai", `${url}/v1/`]]) {
    const config = join(folder, `${provider}.yaml`);
    const model = `  - {name: edge, provider: ${provider}, model: scripted, apiBase: "${base}", apiKey: none}`;
    writeFileSync(config, `name: local\nversion: 1.0.0\nschema: v1\nmodels:\n${model}\n`);
    const options = { env: { ...process.env, HOME: folder }, stdio: ["ignore", "pipe", "ignore"], timeout: 200000 };
    answers[provider] = execFileSync(program, ["-p", "Hello", "--config", config, "--silent"], options).toString().trim();
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
console.log(JSON.stringify(answers));

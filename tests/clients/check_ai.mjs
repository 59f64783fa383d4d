// Vercel's `ai`: text, streams, tools and objects, by its OpenAI-compatible, OpenAI and Anthropic providers.
//
// node check_ai.mjs --url URL [--model-url URL] [--facts FILE]; FACTS are what checks.py and script.py share, as JSON.
// Run by run.py in the folder with node_modules; the last line is the report.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";

const { values } = parseArgs({
  options: {
    url: { type: "string", default: "" },
    "model-url": { type: "string", default: "" },
    only: { type: "string", default: "" },
    facts: { type: "string" },
    modules: { type: "string" },
  },
});
const facts = JSON.parse(readFileSync(values.facts, "utf8"));
const require = createRequire(`${values.modules}/index.js`);
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const { APICallError, Output, generateObject, generateText, stepCountIs, streamObject, streamText, tool } =
  await load("ai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const { createOpenAI } = await load("@ai-sdk/openai");
const { createAnthropic } = await load("@ai-sdk/anthropic");
const { z } = await load("zod");
globalThis.AI_SDK_LOG_WARNINGS = false;

const person = z.object({ name: z.string(), age: z.number().int(), skills: z.array(z.string()) });
const pick = z.object({ colour: z.enum(["red", "green"]), count: z.number().int().min(1).max(9) });
const weather = tool({
  description: "Look up the weather in a city",
  inputSchema: z.object({ city: z.string(), unit: z.enum(["celsius", "fahrenheit"]) }),
  execute: async (input) => {
    assert.deepEqual(input, facts.arguments);
    return "14 degrees";
  },
});
const providers = {
  compatible: (url, key, name) =>
    createOpenAICompatible({
      name: "quartet",
      baseURL: `${url}/v1`,
      apiKey: key,
      includeUsage: true,
      supportsStructuredOutputs: true,
    })(name),
  "openai chat": (url, key, name) => createOpenAI({ baseURL: `${url}/v1`, apiKey: key }).chat(name),
  "openai responses": (url, key, name) => createOpenAI({ baseURL: `${url}/v1`, apiKey: key }).responses(name),
  anthropic: (url, key, name) => createAnthropic({ baseURL: `${url}/v1`, apiKey: key })(name),
};
const checks = [];
const check = (what, run, on = "script") => checks.push({ what, run, on });

for (const [name, make] of Object.entries(providers)) {
  const model = (url, key = facts.key, id = facts.model) => make(url, key, id);
  const more = { maxRetries: 0, maxOutputTokens: 200 };
  check(`${name}: generateText, usage`, async (url) => {
    const found = await generateText({ model: model(url), prompt: facts.capital_question, ...more });
    assert.equal(found.text, facts.capital_answer);
    assert.equal(found.finishReason, "stop");
    assert(found.usage.outputTokens > 10 && found.usage.inputTokens > 0);
  });
  check(`${name}: streamText, pieces joined`, async (url) => {
    const found = streamText({ model: model(url), prompt: facts.capital_question, ...more });
    const pieces = [];
    for await (const piece of found.textStream) pieces.push(piece);
    assert.equal(pieces.join(""), facts.capital_answer);
    assert(pieces.length > 3);
    assert((await found.usage).outputTokens > 10);
  });
  const tools = { get_weather: weather };
  check(`${name}: tools in generateText and streamText`, async (url) => {
    // The server keeps no responses: without this the provider would refer to those that it has seen.
    const providerOptions = { openai: { store: false } };
    const request = {
      model: model(url),
      prompt: facts.weather_question,
      tools,
      stopWhen: stepCountIs(3),
      providerOptions,
      ...more,
    };
    const found = await generateText(request);
    assert.equal(found.text, facts.weather_answer);
    assert.equal(found.steps.length, 2);
    const streamed = streamText(request);
    await streamed.consumeStream();
    assert.equal(await streamed.text, facts.weather_answer);
    assert.deepEqual((await streamed.steps)[0].toolCalls[0].input, facts.arguments);
  });
  if (name !== "anthropic") {
    check(`${name}: generateObject, streamObject, Output.object`, async (url) => {
      const request = { model: model(url), prompt: facts.person_question, ...more };
      assert.deepEqual((await generateObject({ ...request, schema: person })).object, facts.person);
      const streamed = streamObject({ ...request, schema: person });
      let last;
      for await (const part of streamed.partialObjectStream) last = part;
      assert.deepEqual(last, facts.person);
      const { output } = await generateText({ ...request, output: Output.object({ schema: person }) });
      assert.deepEqual(output, facts.person);
    });
  }
  if (name === "compatible") {
    check(
      `${name}: generateObject and a required tool`,
      async (url) => {
        const request = { model: model(url), prompt: "Pick a colour and a count.", temperature: 0, ...more };
        const { object } = await generateObject({ ...request, schema: pick });
        pick.parse(object);
        const tools = { pick: tool({ description: "Pick", inputSchema: pick, strict: true }) };
        const found = await generateText({ ...request, tools, toolChoice: "required" });
        pick.parse(found.toolCalls[0].input);
      },
      "model",
    );
  }
  check(`${name}: errors 400, 401, 404 as its own class`, async (url) => {
    const fails = async (status, request) =>
      assert.rejects(generateText({ prompt: "x", ...more, ...request }), (error) => {
        assert(APICallError.isInstance(error), String(error));
        assert.equal(error.statusCode, status);
        return true;
      });
    await fails(400, { model: model(url), topP: 7 });
    await fails(401, { model: model(url, "wrong") });
    await fails(404, { model: model(url, facts.key, "unknown") });
  });
}

const rows = [];
for (const { what, run, on } of checks) {
  const url = on === "script" ? values.url : values["model-url"];
  if (!url || !what.includes(values.only)) continue;
  const started = performance.now();
  let error = "";
  try {
    await Promise.race([
      run(url),
      new Promise((_, reject) => setTimeout(() => reject(new Error("no end after 90 s")), 90_000).unref()),
    ]);
  } catch (caught) {
    console.error(caught);
    error = String(caught).replaceAll("\n", " ").slice(0, 400);
  }
  console.log(`${error ? "FAILED" : "ok    "} ai: ${what} (${on}) ${error}`);
  rows.push({ check: what, on, error, seconds: Math.round(performance.now() - started) / 1000 });
}
const versions = {};
for (const name of ["ai", "@ai-sdk/openai-compatible", "@ai-sdk/openai", "@ai-sdk/anthropic"])
  versions[name] = JSON.parse(readFileSync(`${values.modules}/node_modules/${name}/package.json`, "utf8")).version;
console.log(JSON.stringify({ client: "ai", versions, checks: rows }));
process.exit(rows.some((row) => row.error) ? 1 : 0);

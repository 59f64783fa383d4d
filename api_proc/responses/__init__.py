"""OpenAI's Responses API, without state: bodies become chats, output becomes items and events."""

"""The wire room: calls to payloads and back, routes, and sending. Knows no broker and no task object."""

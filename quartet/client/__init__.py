"""The client of the engine: generate(), the journal of live requests, replay and de-duplication."""

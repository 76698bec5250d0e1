"""The server under load: the controller in a burst, many clients, a slow source."""

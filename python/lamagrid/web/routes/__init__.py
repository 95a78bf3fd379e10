"""One module per HTTP route of upstream that LamaGrid answers or checks, and the page of tasks."""

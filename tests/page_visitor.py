"""A visitor of the web page without a browser: speaks Streamlit's protocol over a websocket, and uploads by HTTP.

A browser takes seconds for what takes this a twentieth, so that a thousand requests fit into a test.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

import httpx
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState, WidgetStates
from websockets.sync.client import connect

COOKIE = "_streamlit_xsrf"


@dataclass
class Shown:
    """What a run of the page's script showed."""

    captions: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # red ones
    warnings: list[str] = field(default_factory=list)
    exceptions: list[str] = field(default_factory=list)


class Visitor:
    """Opens the page at `address`; `shown` is what it shows. Use it in a `with` block, or call `leave`."""

    def __init__(self, address: str):
        self.http = httpx.Client(base_url=address, timeout=120)
        self.http.get("/_stcore/health")  # leaves the cookie against forged requests
        token = self.http.cookies.get(COOKIE, "")
        self.http.headers["X-Xsrftoken"] = token
        self.open = ExitStack()
        opening = connect(
            f"{address.replace('http', 'ws', 1)}/_stcore/stream", subprotocols=["streamlit", token], origin=address,
            additional_headers={"Cookie": f"{COOKIE}={token}"}, max_size=None, open_timeout=60, close_timeout=1,
        )  # fmt: skip
        self.socket = self.open.enter_context(opening)
        self.session, self.uploader, self.files = "", "", []
        self.asked = 0  # uploads and runs
        self.shown = self.run()

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Closes the page, as closing the tab does."""
        self.open.close()
        self.http.close()

    def send(self, message: BackMsg) -> None:
        self.socket.send(message.SerializeToString())

    def receive(self) -> ForwardMsg:
        message = ForwardMsg()
        message.ParseFromString(self.socket.recv(timeout=120))
        return message

    def run(self) -> Shown:
        """Runs the script with the files that are chosen now. Returns what it shows."""
        message, states = BackMsg(), WidgetStates()
        if self.uploader:
            state = WidgetState(id=self.uploader)
            state.file_uploader_state_value.uploaded_file_info.extend(self.files)
            states.widgets.append(state)
        message.rerun_script.widget_states.CopyFrom(states)
        self.send(message)
        self.asked += 1
        shown = Shown()
        while True:
            message = self.receive()
            kind = message.WhichOneof("type")
            if kind == "new_session":
                self.session, shown = message.new_session.initialize.session_id or self.session, Shown()
            elif kind == "delta" and message.delta.WhichOneof("type") == "new_element":
                self.read(message.delta.new_element, shown)
            elif kind == "script_finished" and not message.script_finished:  # 0: to its end
                return shown

    def read(self, element, shown: Shown) -> None:
        """Adds one element of the page to what is shown."""
        kind = element.WhichOneof("type")
        if kind == "file_uploader":
            self.uploader = element.file_uploader.id
        elif kind == "code":
            shown.captions.append(element.code.code_text)
        elif kind == "alert":
            red = element.alert.format == element.alert.ERROR
            (shown.errors if red else shown.warnings).append(element.alert.body)
        elif kind == "exception":
            shown.exceptions.append(f"{element.exception.type}: {element.exception.message}")

    def upload(self, name: str, data: bytes) -> httpx.Response:
        """Uploads a file beside those that are chosen. Returns the server's answer; a refused file is not chosen."""
        from streamlit.proto.Common_pb2 import UploadedFileInfo

        self.asked += 1
        message = BackMsg()
        message.file_urls_request.request_id = str(self.asked)
        message.file_urls_request.file_names.append(name)
        message.file_urls_request.session_id = self.session
        self.send(message)
        while (reply := self.receive()).WhichOneof("type") != "file_urls_response":
            pass
        (urls,) = reply.file_urls_response.file_urls
        answer = self.http.put(urls.upload_url, files={"file": (name, data)})
        if answer.is_success:
            self.files.append(UploadedFileInfo(name=name, size=len(data), file_id=urls.file_id, file_urls=urls))
        return answer

    def remove_all(self) -> None:
        """Removes the chosen files, as the cross beside each does."""
        for file in self.files:
            self.http.delete(file.file_urls.delete_url)
        self.files = []

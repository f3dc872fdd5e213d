"""Texts that stand where a caption is missing: file names, bare URLs, phrases that pages put there. They match whole captions only."""

from __future__ import annotations

import re

_PHRASES = """
image|images|photo|photos|picture|pictures|pic|img|foto|bild|immagine|imagen|imagem|afbeelding|zdjęcie|фото|изображение|картинка|画像|写真
图片|照片|圖片
thumbnail|thumb|placeholder|placeholder image|image placeholder|placeholder-image|default|default image|spacer|blank
untitled|untitled document|untitled design|untitled image|untitled photo|no title|ohne titel|sans titre|sin título|sin titulo
senza titolo|sem título|zonder titel|без названия|無題|无题|無標題
null|none|nil|undefined|nan|n/a|na|not available|not applicable|unavailable|tbd|alt|alt text|alt tag|image alt|image alt text
alternative text|caption|no caption|image caption|photo caption|description|no description|no description available
no alternative text description for this image|no alt text provided for this image
image not available|image not found|image unavailable|image is not available|image currently unavailable|image not available yet
image missing|missing image|no image|no image available|no image found|no photo|no photo available|no picture|no picture available
no preview|no preview available|no thumbnail|photo not available|photo unavailable|picture not available|image coming soon
photo coming soon|coming soon|image may be subject to copyright|image removed|this image has been removed|image no longer available
this image is no longer available|the image is not available|failed to load image|image failed to load|broken image|loading
loading image|please wait|lazy|lazyload|lazy loaded image|preview|preview image
kein bild|kein bild verfügbar|kein bild vorhanden|kein foto|kein foto vorhanden|bild nicht verfügbar|bild nicht gefunden|bild folgt
kein vorschaubild
pas d'image|pas de photo|aucune image|aucune image disponible|image non disponible|image indisponible|photo non disponible
image manquante|visuel non disponible
imagen no disponible|sin imagen|sin foto|foto no disponible|no hay imagen|imagen no encontrada|imagen próximamente
immagine non disponibile|nessuna immagine|nessuna immagine disponibile|foto non disponibile|senza immagine
imagem não disponível|imagem indisponível|sem imagem|sem foto|foto não disponível
geen afbeelding|geen afbeelding beschikbaar|geen foto|geen foto beschikbaar|afbeelding niet beschikbaar
brak zdjęcia|brak obrazu|brak obrazka|zdjęcie niedostępne
нет изображения|нет фото|изображение отсутствует|изображение недоступно|фото отсутствует|изображение не найдено
görsel yok|resim yok|resim bulunamadı|ingen bild|intet billede|ei kuvaa|není obrázek|bez obrázku|nincs kép
画像なし|画像はありません|画像がありません|写真なし|準備中|画像準備中|no image画像|暂无图片|无图片|图片不存在|图片加载失败|图片不可用
無圖片|暫無圖片|이미지 없음|이미지 준비중|사진 없음
click to enlarge|click to enlarge image|click image to enlarge|click on image to enlarge|click for larger image|click for larger view
click for full size|click to view|click to view larger image|click to zoom|click here|click here to enlarge|tap to zoom|hover to zoom
view larger image|view larger|view full size|view image|open image|see image|enlarge|enlarge image|zoom in|zoom image|larger image
full size image|full screen|read more|learn more|more info|view details|download|close|next|previous|prev|back|logo image|play video
video thumbnail|watch video|advertisement|advertising|ad|sponsored|sponsored content
zum vergrößern klicken|klicken zum vergrößern|bild vergrößern|vergrößern|cliquez pour agrandir|cliquer pour agrandir|agrandir
agrandir l'image|clic para ampliar|haga clic para ampliar|ampliar|ampliar imagen|clicca per ingrandire|ingrandisci|clique para ampliar
klik om te vergroten|klik voor vergroting|нажмите для увеличения|увеличить|クリックで拡大|画像を拡大|拡大|点击放大|點擊放大|点击查看大图
클릭하면 확대됩니다
stock photo|stock image|stock photography|royalty-free stock photo|royalty free stock photo|royalty free image|stock vector
stock illustration|stock footage|getty images|shutterstock|istock|istockphoto|alamy stock photo|dreamstime|depositphotos|123rf
image for representational purpose|representational image|file photo|photo credit|image credit|image source|copyright
all rights reserved
404|403|500|404 error|error 404|404 not found|404 page not found|403 forbidden|page not found|not found|file not found|error
access denied|forbidden|bad request|internal server error|service unavailable|500 internal server error|just a moment...
attention required! | cloudflare
""".strip()
# ' | ' with blanks is part of a phrase.
_KNOWN = frozenset(phrase for line in _PHRASES.splitlines() for phrase in re.split(r"(?<! )\|(?! )", line))
_TRIMMED = " .,:;!?…-–—_*#|/\\()[]{}<>\"'“”‘’«»"
_LONGEST = max(map(len, _KNOWN))

_ENDING = r"jpe?g|jpe|jfif|png|gif|webp|bmp|tiff?|avif|heic|heif|svg|ico|jxl|cr2|nef|dng|psd|eps|pdf|mp4|mov|avi|webm|html?|php|aspx?"
_SHOT = r"screen ?shot|screen capture|bildschirmfoto|capture d[’']écran|captura de pantalla|whatsapp image|untitled(?: design| image)?"
_NAME = r"img|image|imag|photo|foto|picture|pic|bild|scan|file"
_CAMERA = r"img|dsc|dscn|dscf|pict|sdc|mvc|gopr|dji|pxl|vid|wp|fb_img|screenshot"
_FILE = re.compile(
    rf"[^\s/\\]+\.(?:{_ENDING})"  # a name in one piece: red-car.jpg is for machines
    rf"|(?:{_SHOT}|{_NAME})[\W\d_]*(?:(?:at|um|à|am|pm|copy|final|kopie)[\W\d_]*)*\.(?:{_ENDING})"  # in pieces: 'Image 12 (1).png'
    rf"|(?:{_SHOT})[\W\d_]*\d[\W\d_]*(?:(?:at|um|à|am|pm)[\W\d_]*)*"
    # What cameras and scripts write: DSC01234, IMG 1234, image001.
    rf"|(?:{_NAME}|{_CAMERA})[-_#]{{0,2}}\d[-_\d]*|(?:{_CAMERA}) \d{{3,}}"
    rf"|(?:{_NAME}|{_CAMERA})[-_#]{{0,2}}\d[-_\d]*[-_ ]?(?:copy|edited|edit|hdr|small|large|thumb|\(\d+\)|[a-z])"
    r"|p\d{7}|_?mg_\d{3,}|cimg\d{3,}|[a-z]{2,4}_\d{4,}"
    # 'Photo 3 of 5', but not 'Photo 51', which is the name of a photograph
    r"|(?:image|photo|picture|slide|page|bild|foto|figure|item|product image|gallery image|thumbnail) #?\d+ ?(?:of|/|von|de|di|van|из) ?\d+"
    r"|(?:slide|slideshow image|gallery image|product image|thumbnail|carousel image) #?\d+"
    r"|[0-9a-f]{16,}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"  # hashes and UUIDs
    r"|\d+(?:[-_x×]\d+)+|\d{5,}"  # 1024x768, 20200101_120000, numbers of articles
)
_URL = re.compile(
    r"(?:https?|ftp|file|data|blob|javascript)://?[^\s]*|data:[^\s]+|www\.[^\s]+"
    r"|(?:[a-z0-9-]+\.)+(?:com|net|org|info|biz|io|co|de|fr|es|it|nl|ru|pl|jp|cn|uk|eu|us|br|in|au)(?::\d+)?(?:/[^\s]*)?"
    r"|[a-z0-9._%+-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)+|[a-z]:\\[^\s]*|(?:\.{0,2}/)[^\s]+/[^\s]*"
)
_LONGEST_NAME = 200


def is_boilerplate(text: str) -> bool:
    """Whether a cleaned caption as a whole is such a text."""
    if len(text) > _LONGEST + 16 and " " in text:
        return False
    bare = text.lower().strip(_TRIMMED)
    if not bare or bare in _KNOWN:
        return True
    if " " in bare:
        return any(map(str.isdigit, bare)) and _FILE.fullmatch(bare) is not None
    return _URL.fullmatch(bare) is not None or (len(bare) <= _LONGEST_NAME and _FILE.fullmatch(bare) is not None)
